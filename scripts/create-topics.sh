#!/usr/bin/env bash
# Creates or checks every topic of topics.yaml; prints one line per topic: created, ok, or "differs: what".
# Safe to repeat; never deletes a topic and never alters one, except that --add-partitions raises retry topics
# to their main topic's number of partitions. Exit code 1 when something differs.
#
# usage: scripts/create-topics.sh [--config FILE] [--pipeline NAME]... [--add-partitions] [--json]
# env:   LADDER_BIN  an installed `pipeline` binary; without it cargo builds the checkout, so it is never a stale one
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [[ -n "${LADDER_BIN:-}" ]]; then
  exec "$LADDER_BIN" topics create "$@"
fi
# The caller's folder stays the working one, so that a relative --config means what it says.
exec cargo run --quiet --manifest-path "$here/../Cargo.toml" --bin pipeline -- topics create "$@"
