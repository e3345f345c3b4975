# shellcheck shell=bash
# Sourced by the other scripts: messages, and steps that log to a file and report one line.

die() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}

# A step's log is shown only when it fails; the callers say where the logs are.
FAILED_STEPS=()

# A function run as a step must chain its commands with &&: `set -e` does not hold inside a condition.
step() { # name command...: runs it with its output in $LOGS/name.log; a failure is shown and remembered
  local name=$1 log=$LOGS/$1.log from=$SECONDS
  shift
  printf '%-8s … ' "$name"
  if "$@" >"$log" 2>&1 </dev/null; then
    printf 'ok      %4d s\n' $((SECONDS - from))
    return 0
  fi
  printf 'FAILED  %4d s\n' $((SECONDS - from))
  FAILED_STEPS+=("$name")
  printf -- '---- last lines of %s\n' "$log"
  tail -n 60 "$log"
  printf -- '----\n'
  return 1
}
