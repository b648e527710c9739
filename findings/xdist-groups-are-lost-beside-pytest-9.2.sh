#!/usr/bin/env bash
# pytest 9.2.0, pytest-xdist 3.8.0.
#
# `--dist loadgroup` sends tests marked with xdist_group to one worker. pytest-xdist tells its scheduler by a
# suffix to a test's private node id, which pytest 9.2 no longer reads. Nothing warns: the tests of a group are
# spread over the workers, each of which then makes the fixtures that the group was meant to share. With
# pytest 9.0 every test of a group runs in one worker, and its node id shows the group.
#
# Fails if pytest 9.2 keeps the group together, or pytest 9.0 does not.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/test_group.py" <<'PY'
import time

import pytest


@pytest.mark.xdist_group("shared")
@pytest.mark.parametrize("number", range(12))
def test_of_the_group(number, worker_id):
    time.sleep(0.2)
    print(f"ran in {worker_id}")
PY
workers() {
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/pip" install --quiet "pytest==$1" pytest-xdist==3.8.0
    (cd "$folder" && "$folder/$1/bin/python" -m pytest -p no:cacheprovider -n 2 --dist loadgroup -rP) >"$folder/said"
    grep -o 'ran in gw.' "$folder/said" | sort -u | wc -l
}
for version in 9.0.0 9.2.0; do
    count=$(workers "$version")
    echo "pytest $version: one group ran in $count worker(s)"
    [[ $version == 9.0.0 ]] && expected=1 || expected=2
    [[ $count == "$expected" ]] || exit 1
done
