"""Run a job on the cluster that RAY_ADDRESS names and follow its log: `ray job submit` with a reliable exit code.

    RAY_ADDRESS=http://head:8265 cluster/submit.sh nightly --config night.yaml

Exit code: the job's own (0 done, 2 settings that cannot work, 1 anything else), 3 if it was stopped, 4 if the cluster or its
token is refused. `ray job submit` answers 1 for every failure, and 0 for a job that was stopped or whose log broke off.
"""

import argparse
import asyncio
import logging
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "token")

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from tenacity import retry, retry_if_exception_message, stop_after_delay, wait_fixed

REPO = Path(__file__).resolve().parents[1]
JOBS = sorted(p.stem for p in (REPO / "jobs").glob("*.py") if p.stem != "__init__")
LEFT_OUT = [".git", ".venv", ".venv-*", "tests", "demo-root", "**/__pycache__"]
STOPPED, NO_CLUSTER = 3, 4
PATIENCE_S = 300  # a head that does not answer for so long is given up; the job goes on without us


def main() -> int:
    parser = argparse.ArgumentParser("cluster/submit.sh", description="Run a job on a Ray cluster and follow its log.")
    parser.add_argument("--submission-id", help="name of the job on the cluster; a second one of it is refused")
    parser.add_argument("--no-wait", action="store_true", help="submit, print the job's name and do not wait")
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="flags of the job")
    args = parser.parse_args()
    logging.getLogger("ray").setLevel("ERROR")  # else a line for every file that is not sent
    if problem := _problem(args.flags):
        print(f"cluster/submit.sh: {problem}", file=sys.stderr)
        return 2
    try:
        client = JobSubmissionClient(os.environ["RAY_ADDRESS"])
        name = _submit(client, args)
    except (AuthenticationError, RuntimeError, ConnectionError, ValueError) as e:
        print(f"cluster/submit.sh: {os.environ['RAY_ADDRESS']} does not take the job: {e}", file=sys.stderr)
        return NO_CLUSTER
    print(f"submitted {name}; `ray job stop {name}` ends it", file=sys.stderr)
    return 0 if args.no_wait else _follow(client, name)


@retry(
    retry=retry_if_exception_message(match=r"(?s).*try again later"),  # a head that has just started
    wait=wait_fixed(2),
    stop=stop_after_delay(60),
    reraise=True,
)
def _submit(client: JobSubmissionClient, args: argparse.Namespace) -> str:
    """Send the repository and start the job; its name on the cluster."""
    return client.submit_job(
        entrypoint=_entrypoint(args.job, args.flags),
        submission_id=args.submission_id,
        runtime_env={"working_dir": str(REPO), "excludes": LEFT_OUT, "env_vars": _environment()},
        metadata={"job": args.job},
    )


def _problem(flags: list[str]) -> str | None:
    """What can be known to fail before anything is sent."""
    if not os.environ.get("RAY_ADDRESS"):
        return "RAY_ADDRESS is not set; it should be the head's job address, as http://head:8265"
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ["RAY_AUTH_MODE"] == "token" and not os.environ.get("RAY_AUTH_TOKEN") and not token.is_file():
        return f"there is no token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file ({token} is none)"
    files = [flags[i + 1] for i, f in enumerate(flags[:-1]) if f == "--config"]
    files += [f.removeprefix("--config=") for f in flags if f.startswith("--config=")]
    for file in files:
        path = Path(file)
        if path.is_absolute() or (path.suffix and not (REPO / path).is_file()):
            return f"--config {file} should be a file below {REPO}, which is what is sent to the cluster, or a preset"
    return None


def _entrypoint(job: str, flags: list[str]) -> str:
    """A shell line; the interpreter is the cluster's."""
    return shlex.join(["python", "-m", f"jobs.{job}", *flags])


def _environment() -> dict[str, str]:
    """The commit, which every run records; nothing else of our environment, which may hold secrets, is sent."""
    git = subprocess.run(["git", "-C", REPO, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {"ADBOOSTER_COMMIT": git.stdout.strip()} if git.returncode == 0 else {}


def _follow(client: JobSubmissionClient, name: str) -> int:
    """Print the log until the job has ended, however often the connection breaks; its exit code."""
    log, lost_since = Log(client, name), None
    while True:
        try:
            asyncio.run(log.print())
            info = client.get_job_info(name)
            lost_since = None
        except (RuntimeError, OSError) as e:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > PATIENCE_S:
                print(f"the cluster has not answered for {PATIENCE_S} s ({e}); {name} may still run", file=sys.stderr)
                return NO_CLUSTER
            time.sleep(5)
            continue
        if info.status.is_terminal():
            return _code(info)
        time.sleep(1)


class Log:
    """A job's log, of which each character is printed once."""

    def __init__(self, client: JobSubmissionClient, name: str):
        self.client, self.name, self.shown = client, name, 0

    async def print(self) -> None:
        """Print it while it grows. Every connection sends it from the start."""
        at = 0
        async for text in self.client.tail_job_logs(self.name):
            new = text[max(0, self.shown - at) :]
            at += len(text)
            if new:
                print(new, end="", flush=True)
            self.shown = max(self.shown, at)


def _code(info: JobDetails) -> int:
    message = (info.message or "").split(", last available logs")[0]  # the log is printed already
    print(f"{info.submission_id} {info.status.value.lower()}: {message}", file=sys.stderr)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return STOPPED if info.status == JobStatus.STOPPED else info.driver_exit_code or 1


if __name__ == "__main__":
    raise SystemExit(main())
