#!/usr/bin/env bash
# Run a job on the cluster that RAY_ADDRESS names (http://head:8265) and follow its log:
#   cluster/submit.sh nightly --config night.yaml
# The repository is the job's working folder; the cluster's image has the dependencies, nothing is installed per job.
# Token authentication is on (RAY_AUTH_MODE=token): the token from RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH.
# Exit code: the job's own; see submit.py. PYTHON: an interpreter with this cluster's version of Ray.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x "$here/../.venv/bin/python" ] && PYTHON=$here/../.venv/bin/python
fi
exec "$PYTHON" "$here/submit.py" "$@"
