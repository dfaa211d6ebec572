"""Watts of a node and of a job on it, and the joules of a stretch of time. Promises and bills come from here.

The constants are published measurements; each names its source. They hold until a node's own meter says better.

Sources, by the tag used below:

- [park] "Model Parking Tax", arXiv 2605.23918: idle draw with and without a CUDA context (A100, H100, L40S).
- [ccf] Cloud Carbon Footprint, `AwsFootprintEstimationConstants.ts` (Apache-2.0), and its coefficients from SPECpower.
- [zeus] Zeus `summary_power_*.csv` (Apache-2.0): training draw of P100, V100, RTX 6000, A40.
- [h100n] arXiv 2412.08602: 8xH100 nodes draw 76-82 % of their rating, 8.4 kW at peak, of which 2.8 kW outside the GPUs.
- [tdp] the makers' data sheets.
- [rule] the fit to these rows that stands in for a missing number: bare idle 0.11 of the power limit, context idle 0.20
  of it for parts with stacked memory and 0.30 for others, training draw 0.75.
- [assumed] no measurement was found; calibrate against the node's management controller.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from scheduler.problem import CPU_KIND, WHOLE_DEVICE, Node, NodePower, Shape

BARE_IDLE_SHARE = 0.11
CONTEXT_IDLE_SHARE = 0.30
TRAINING_SHARE = 0.75
UNKNOWN_GPU_LIMIT_W = 300.0
"""Power limit of a GPU that is neither in the table nor tells its limit: that of most PCIe training cards [tdp]."""

MEMORY_W_PER_GB = 0.392
"""Main memory, per 10^9 bytes [ccf]."""

OFF_W = 15.0
"""A switched-off server whose management controller listens: 10-20 W [assumed]."""

BOOT_S = 300.0
"""From the button to ready, for an 8-GPU server: 5-10 min [assumed]."""

BOOT_WAIT = 15.0
"""How much dearer a wait for a boot is than the idle draw of a whole node. In `bench.time` waits are
shorter by a twelfth than with 5, at hardly more energy; 50 took another 3 s off, for nearly 1 % of energy."""

BOOT_SHARE = 1.2
"""Mean draw while booting, in units of the node's base draw [assumed]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePower:
    """What one device draws, in W.

    `bare_idle_w`: no process on it. `context_idle_w`: a process holds it and computes nothing. `training_w`: a typical
    training job, busy all the time. `limit_w`: the power limit. `host_w`: what the node carries outside its GPUs for
    each such device when idle (fans, CPUs, switches).
    """

    bare_idle_w: float
    context_idle_w: float
    training_w: float
    limit_w: float
    host_w: float


def _gpu(limit: float, bare: float, context: float, training: float, host: float) -> DevicePower:
    return DevicePower(
        bare_idle_w=bare, context_idle_w=context, training_w=training * limit, limit_w=limit, host_w=host
    )


# Host: 8-GPU nodes idle at an assumed 400 W (V100), 600 W (A100), 1000 W (H100) outside their GPUs; 4xT4 at 160 W.
# Training share [zeus]: mean of ResNet-50, BERT and DeepSpeech2.
_DEVICES: dict[str, DevicePower] = {
    "k80": _gpu(300, 35.0, 60.0, 0.75, 40),  # idle [ccf]; the board with both dies
    "p100": _gpu(300, 33.0, 33.0, 0.60, 50),  # [zeus]; its floor is an upper bound of both idles
    "p100-pcie": _gpu(250, 33.0, 33.0, 0.60, 50),
    "v100": _gpu(300, 30.0, 38.0, 0.82, 50),  # 27-35 W bare [ccf], 36-40 W context [zeus]
    "v100-pcie": _gpu(250, 30.0, 38.0, 0.82, 50),
    "rtx6000": _gpu(260, 28.6, 55.0, 0.83, 40),  # [zeus]; bare [rule]
    "rtx-6000": _gpu(260, 28.6, 55.0, 0.83, 40),
    "a40": _gpu(300, 30.0, 80.0, 0.76, 50),  # bare: NVIDIA/open-gpu-kernel-modules issue 874; rest [zeus]
    "t4": _gpu(70, 8.0, 21.0, 0.75, 40),  # bare [ccf]; context [rule]
    "a10": _gpu(150, 18.0, 45.0, 0.75, 40),  # bare [ccf]; context [rule]
    "l4": _gpu(72, 8.0, 21.6, 0.75, 40),  # [rule]
    "l40s": _gpu(350, 35.6, 102.1, 0.75, 75),  # [park]
    "a100": _gpu(400, 53.7, 80.0, 0.75, 75),  # [park]
    "a100-pcie": _gpu(300, 53.7, 80.0, 0.75, 75),
    "h100": _gpu(700, 71.8, 121.7, 0.75, 125),  # [park], [h100n]
    "h100-pcie": _gpu(350, 71.8, 121.7, 0.75, 125),
    "h200": _gpu(
        700, 77.0, 140.0, 0.74, 125
    ),  # bare 74-80 W and draw from vendor notes, low confidence; context [rule]
    "b200": _gpu(1000, 110.0, 200.0, 0.75, 150),  # [tdp], [rule]
    "mi250x": _gpu(560, 61.6, 112.0, 0.75, 125),  # [tdp], [rule]
    "mi300x": _gpu(750, 82.5, 150.0, 0.75, 125),  # [tdp], [rule]
}
_VENDOR_WORDS = frozenset({"nvidia", "tesla", "quadro", "geforce", "amd", "instinct"})
_UNKNOWN_HOST_W = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuPower:
    """Draw of the whole server per hardware thread, GPUs and extra memory aside, in W: nothing running, all busy."""

    idle_w: float
    peak_w: float


# Medians of two-socket servers in SPECpower [ccf], n = 8-32 a row, by a pattern of the model's name.
_CPUS: tuple[tuple[re.Pattern[str], CpuPower], ...] = (
    (re.compile(r"EPYC 7\w\w2"), CpuPower(idle_w=0.36, peak_w=1.6)),
    (re.compile(r"EPYC"), CpuPower(idle_w=0.41, peak_w=1.8)),
    (re.compile(r"Xeon.* E5-\d+ v4"), CpuPower(idle_w=0.51, peak_w=2.9)),
    (re.compile(r"Xeon.* [3-8]1\d\d"), CpuPower(idle_w=0.49, peak_w=4.0)),
    (re.compile(r"Xeon.* [3-9]2\d\d"), CpuPower(idle_w=0.46, peak_w=3.7)),
    (re.compile(r"Xeon.* [3-8]3\d\d"), CpuPower(idle_w=0.79, peak_w=3.9)),
)
_UNKNOWN_CPU = CpuPower(idle_w=0.5, peak_w=4.0)  # 4 W a thread: CodeCarbon's rule for a model it does not know


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledDevice:
    """One device of a node's inventory. `limit_w` is its power limit in force, if it can be read."""

    id: str
    kind: str
    limit_w: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What decides a node's draw: the whole machine's hardware threads and memory, and its devices."""

    cpu_threads: int
    memory_bytes: int
    devices: tuple[InstalledDevice, ...]
    cpu_model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was observed of a node over `seconds`. Whatever is missing is modelled.

    `cpu_energy_j` is counted by the CPU itself (RAPL); `busy_cores` is the mean number of busy threads.
    `device_energy_j` (J) and `utilisation` (0 to 1) are by device id.
    """

    seconds: float
    busy_cores: float | None = None
    cpu_energy_j: float | None = None
    device_energy_j: Mapping[str, float] = field(default_factory=dict[str, float])
    utilisation: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One allocation's hold on a node over the stretch: thousandths of each device by id."""

    holder: str
    devices: Mapping[str, int]
    millicores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyBill:
    """Energy of a node over a stretch, in J. `idle_j` and the values of `by_holder` add up to `total_j`.

    `quality` says whether hardware counted the energy, the model computed it, or both.
    """

    total_j: float
    idle_j: float
    by_holder: Mapping[str, float]
    quality: Literal["measured", "modelled", "mixed"]


def device_power(kind: str, limit_w: float | None = None) -> DevicePower:
    """Draw of a device of `kind`, such as `h100` or `a100-sxm4-80gb`: that of the longest known kind it begins with.

    `limit_w` caps the training draw of a known kind. An unknown kind is derived from it by the rule, or from 300 W.
    The `cpu` kind is one hardware thread; its idle draw is in the node's base already, so it counts from 0.
    """
    if kind == CPU_KIND:
        busy = _UNKNOWN_CPU.peak_w - _UNKNOWN_CPU.idle_w
        return DevicePower(bare_idle_w=0.0, context_idle_w=0.0, training_w=busy, limit_w=busy, host_w=0.0)
    known = known_kind(kind)
    if known is None:
        limit = limit_w if limit_w else UNKNOWN_GPU_LIMIT_W
        return _gpu(limit, BARE_IDLE_SHARE * limit, CONTEXT_IDLE_SHARE * limit, TRAINING_SHARE, _UNKNOWN_HOST_W)
    row = _DEVICES[known]
    limit = min(row.limit_w, limit_w) if limit_w else row.limit_w
    return DevicePower(
        bare_idle_w=row.bare_idle_w,
        context_idle_w=row.context_idle_w,
        training_w=max(row.context_idle_w, min(row.training_w, limit)),
        limit_w=limit,
        host_w=row.host_w,
    )


def active_w(kind: str, *, utilisation: float = 1.0, limit_w: float | None = None) -> float:
    """What a device draws above its bare idle while a job keeps it busy `utilisation` (0 to 1) of the time.

    context idle + utilisation * (training draw - context idle) - bare idle, in W: `Shape.active_w` of the planner.
    """
    power = device_power(kind, limit_w)
    return power.context_idle_w + utilisation * (power.training_w - power.context_idle_w) - power.bare_idle_w


def cpu_power(model: str) -> CpuPower:
    """Idle and peak draw per hardware thread of a server whose CPU is called `model`."""
    return next((power for pattern, power in _CPUS if pattern.search(model)), _UNKNOWN_CPU)


def cpu_active_w(inventory: Inventory, busy_cores: float) -> float:
    """What the CPUs draw above idle when `busy_cores` threads are busy, in W.

    (peak - idle) * (2u - u^h) with u the busy share, fitted to RAPL profiles (root mean square error 0.05-0.06 where a
    straight line has 0.16-0.22). h is 1.9-2.4 there; 2 is the one for which the curve never falls.
    """
    power = cpu_power(inventory.cpu_model)
    share = min(1.0, max(0.0, busy_cores / inventory.cpu_threads))
    return inventory.cpu_threads * (power.peak_w - power.idle_w) * (2 * share - share**2)


def host_base_w(inventory: Inventory) -> float:
    """What the node draws on and idle outside its devices, in W: CPUs and memory, or the GPU node's chassis if more."""
    model = inventory.cpu_threads * cpu_power(inventory.cpu_model).idle_w
    model += inventory.memory_bytes / 1e9 * MEMORY_W_PER_GB
    chassis = sum(device_power(device.kind, device.limit_w).host_w for device in inventory.devices)
    return max(model, chassis)


def node_power(inventory: Inventory, *, boot_s: float = BOOT_S) -> NodePower:
    """Power of a node from its inventory: on with all devices at bare idle, off, and what a boot of `boot_s` costs."""
    idle = sum(device_power(device.kind, device.limit_w).bare_idle_w for device in inventory.devices)
    base = host_base_w(inventory) + idle
    return NodePower(base_w=base, off_w=min(OFF_W, base), boot_s=boot_s, boot_j=BOOT_SHARE * base * boot_s)


def boots_in(power: NodePower, boot_s: float) -> NodePower:
    """The same node if a boot takes `boot_s`, in s."""
    return replace(power, boot_s=boot_s, boot_j=BOOT_SHARE * power.base_w * boot_s)


def switched_j(power: NodePower, *, off_s: float, boot_s: float) -> tuple[float, float]:
    """What a node that is off for `off_s` and boots for `boot_s` draws meanwhile, in J: as if off, and for boots.

    The two parts are those of the objective: `off_w` all the time, boots included, and a boot's energy on top of it, in
    proportion to how long it takes.
    """
    return power.off_w * (off_s + boot_s), boots_in(power, boot_s).boot_j


def default_wait_w(shapes: Sequence[Shape], nodes: Sequence[Node]) -> float:
    """Price of one waiting device, lambda of the objective, in W: the idle draw of one device's share of its node.

    A queued GPU-second then costs as much as a powered idle one. The cheapest share among the nodes that have a kind
    the job accepts, so that waiting is never overpriced; 0 where none has. A node's draw is shared over its
    accelerators, and over its CPU slots where those are what is asked for.
    """
    shares = [
        node.power.base_w / sum((device.kind == CPU_KIND) == (kind == CPU_KIND) for device in node.devices)
        for kind in {shape.kind for shape in shapes}
        for node in nodes
        if any(device.kind == kind for device in node.devices)
    ]
    return min(shares, default=0.0)


def default_boot_wait_w(nodes: Sequence[Node]) -> float:
    """Price of waiting for a boot, in W: `BOOT_WAIT` times the idle draw of the largest node.

    What waits is a gang, however little the node draws that boots for it, and those behind it wait too.
    """
    return BOOT_WAIT * max((node.power.base_w for node in nodes), default=0.0)


def price_stretch(inventory: Inventory, reading: Reading, holdings: Sequence[Holding]) -> EnergyBill:
    """Energy of a node over a stretch of time, and who answers for it. IT energy, not multiplied by PUE.

    - A device's energy goes to its holder, and is divided among several by their shares: they keep it awake, so what
      nobody holds of it costs them too. One that is not counted is modelled: bare idle when nothing holds or uses
      it, else by its utilisation (1 where that is unknown).
    - What the CPUs draw above idle is split over the holders by their cores.
    - The rest of the node (`host_base_w`) is split evenly over its accelerators, or over its CPU slots if it has none;
      a holder answers for what it holds of those.
    - What no job holds is idle.

    Raises ValueError if holdings take more of a device than there is, or one that the node does not have.
    """
    sharers = _sharers(inventory, holdings)
    by_holder = dict.fromkeys((holding.holder for holding in holdings), 0.0)
    idle_j = measured_j = modelled_j = 0.0

    def charge(holder: str | None, joules: float) -> None:
        nonlocal idle_j
        if holder is None:
            idle_j += joules
        else:
            by_holder[holder] += joules

    for device in inventory.devices:
        if device.kind == CPU_KIND:
            continue
        shares = sharers[device.id] or {None: WHOLE_DEVICE}
        counted = reading.device_energy_j.get(device.id)
        if counted is None:
            joules = (
                _modelled_w(device, reading.utilisation.get(device.id), held=bool(sharers[device.id])) * reading.seconds
            )
            modelled_j += joules
        else:
            joules = counted
            measured_j += joules
        for holder, share in shares.items():
            charge(holder, joules * share / sum(shares.values()))

    base_w = host_base_w(inventory)
    cpu_j = cpu_active_w(inventory, reading.busy_cores or 0.0) * reading.seconds
    modelled_j += base_w * reading.seconds
    if reading.cpu_energy_j is None:
        modelled_j += cpu_j
    else:
        # The counter covers the CPUs' idle draw too, which is in the base already.
        idle_cpu_j = inventory.cpu_threads * cpu_power(inventory.cpu_model).idle_w * reading.seconds
        cpu_j = max(0.0, reading.cpu_energy_j - idle_cpu_j)
        measured_j += reading.cpu_energy_j
        modelled_j -= min(idle_cpu_j, reading.cpu_energy_j)

    millicores = sum(holding.millicores for holding in holdings)
    for holding in holdings:
        charge(holding.holder, cpu_j * holding.millicores / millicores if millicores else 0.0)
    if not millicores:
        charge(None, cpu_j)
    carriers = _carriers(inventory)
    for device in carriers:
        part_j = base_w * reading.seconds / len(carriers) / WHOLE_DEVICE
        rest = WHOLE_DEVICE - sum(sharers[device.id].values())
        for holder, share in [*sharers[device.id].items(), (None, rest)]:
            charge(holder, part_j * share)
    if not carriers:
        charge(None, base_w * reading.seconds)

    total_j = idle_j + sum(by_holder.values())
    quality = "mixed" if measured_j > 0 and modelled_j > 0 else "measured" if measured_j > 0 else "modelled"
    return EnergyBill(total_j=total_j, idle_j=idle_j, by_holder=by_holder, quality=quality)


def known_kind(kind: str) -> str | None:
    """The longest kind of our table that the name begins with, if any: `h100` for `h100-80gb-hbm3`."""
    words = kind.split("-")
    while len(words) > 1 and words[0] in _VENDOR_WORDS:
        words.pop(0)
    name = "-".join(words)
    # `l40` must not pass for an `l4`: a number goes on, a variant's letter or dash does not.
    begins = [known for known in _DEVICES if name.startswith(known) and not name[len(known) :][:1].isdigit()]
    return max(begins, key=len, default=None)


def _sharers(inventory: Inventory, holdings: Sequence[Holding]) -> dict[str, dict[str, int]]:
    """For each device what each holder has of it, in thousandths."""
    sharers: dict[str, dict[str, int]] = {device.id: {} for device in inventory.devices}
    for holding in holdings:
        for device, share in holding.devices.items():
            if device not in sharers:
                raise ValueError(f"holding of {holding.holder} names device {device}, which the node does not have")
            shares = sharers[device]
            shares[holding.holder] = shares.get(holding.holder, 0) + share
            if sum(shares.values()) > WHOLE_DEVICE:
                raise ValueError(f"{', '.join(shares)} hold more than the whole of device {device} at once")
    return sharers


def _modelled_w(device: InstalledDevice, utilisation: float | None, *, held: bool) -> float:
    bare = device_power(device.kind, device.limit_w).bare_idle_w
    if not held and not utilisation:
        return bare
    busy = 1.0 if utilisation is None else utilisation
    return bare + active_w(device.kind, utilisation=busy, limit_w=device.limit_w)


def _carriers(inventory: Inventory) -> list[InstalledDevice]:
    accelerators = [device for device in inventory.devices if device.kind != CPU_KIND]
    return accelerators or list(inventory.devices)
