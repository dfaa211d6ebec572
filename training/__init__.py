"""What the ranks run: recipes over `torch.distributed`. Any torchrun script runs the same way."""
