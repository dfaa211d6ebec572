"""The pictures of the README, taken from a cluster that really runs.

    python -m docs.screenshots

Needs Chromium on the path or in ERGON_CHROMIUM (`apt-get install chromium`). Writes docs/images/*.png.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from ergon.cli.local import LocalSettings, local_cluster
from ergon.client import Client
from protocol.jobs import JobSpec, Recipe
from protocol.states import Role

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1280, "height": 900}


def main() -> int:
    """Start a cluster, give it work, and take the pictures. 2 without Chromium."""
    program = os.environ.get("ERGON_CHROMIUM") or shutil.which("chromium")
    if program is None:
        sys.stderr.write("no Chromium: `apt-get install chromium`, or name one in ERGON_CHROMIUM\n")
        return 2
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ergon-pictures-") as name:
        Path(name).chmod(0o711)
        settings = LocalSettings(
            data_dir=Path(name) / "data", port=0, agents=2, slots_per_agent=2, environment=dict(os.environ)
        )
        with local_cluster(settings) as cluster:
            token = cluster.user_token("admin", Role.ADMIN)
            users_token = cluster.user_token("alice", Role.USER)
            with Client(cluster.url, token) as admin, Client(cluster.url, users_token) as alice:
                job = submit_work(admin, alice)
                with sync_playwright() as playwright:
                    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
                    page = playwright.chromium.launch(executable_path=program, args=arguments).new_page(viewport=SIZE)
                    page.goto(cluster.url)
                    page.fill("#token", token)
                    with page.expect_navigation():
                        page.press("#token", "Enter")
                    page.screenshot(path=IMAGES / "overview.png")
                    admin.wait(job)
                    page.goto(f"{cluster.url}/jobs/{job}")
                    page.screenshot(path=IMAGES / "job.png")
    return 0


def submit_work(admin: Client, alice: Client) -> str:
    """One gang over both nodes, some jobs that wait for it, and one that no node could run. The id of the gang."""
    recipe = Recipe(name="digits-mlp", options={"epochs": 60})
    gang = alice.submit(JobSpec(name="digits-two-nodes", nodes=2, recipe=recipe))
    for number in range(3):
        owner = (alice, admin)[number % 2]
        owner.submit(JobSpec(name=f"wide-{number}", nodes=2, devices_per_node=2, recipe=Recipe(name="digits-mlp")))
    admin.submit(JobSpec(name="too-large", nodes=64, device_kinds=["h100"], command=["true"]))
    next(iter(alice.follow_logs(gang.id)))  # once it has printed something there is something to see
    return gang.id


if __name__ == "__main__":
    sys.exit(main())
