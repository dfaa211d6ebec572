"""What tests ask about jobs."""

from ergon.client import Client
from protocol.jobs import JobView


def newest(client: Client) -> JobView:
    return client.job(next(iter(client.jobs())).id)


def words_of(client: Client, job: JobView) -> str:
    return "".join(piece.text for piece in client.logs(job.id))
