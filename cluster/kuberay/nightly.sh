#!/bin/sh
# Create the RayJob of a manifest and wait for its end. Exit code 0 only if the job succeeded.
set -eu
name=$(kubectl create -f "$1" -o name)
echo "created $name"
while true; do
  # An API server that does not answer for a while does not end the night.
  state=$(kubectl get "$name" -o 'jsonpath={.status.jobDeploymentStatus} {.status.jobStatus}') || state="unknown"
  case "$state" in
    Complete*) echo "$name: $state"; [ "$state" = "Complete SUCCEEDED" ]; exit ;;
    Failed*) echo "$name: $state"; exit 1 ;;
  esac
  sleep "${POLL_S:-15}"
done
