#!/usr/bin/env bash
# Run a job on the cluster that RAY_ADDRESS names (http://head:8265) and follow its log:
#   cluster/submit.sh nightly --config night.yaml
# Exit code: 0 only if the job succeeded. The cluster's image has the dependencies; nothing is installed per job.
set -euo pipefail
job=${1:?usage: cluster/submit.sh JOB [FLAGS]; JOB is prepare, cohorts, finetune, generate or nightly}
shift
cd "$(dirname "$0")/.."
exec ray job submit --working-dir . -- python -m "jobs.$job" "$@"
