#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A disk that has all sectors needs no backing file: a server that is started
# on it closes that at once, and does not miss it when it is gone.

source ./functions.sh
set -e
set -x

requires_nbdsh
requires_plugin file
requires type nbdcopy

# has_open FILE: has the server FILE open?
has_open ()
{
    find "/proc/$pid/fd" -lname "$tmp/$1" | grep -q .
}

cd "$tmp"
random_file base.img 1048576
cp base.img want.img
addcow-img create -q -b base.img vm.add-cow
cd - >/dev/null

serve ()
{
    (cd "$tmp" && : > log)
    start_nbdkit sock --log=stderr --filter="$addcow" file \
                 addcow="$tmp/vm.add-cow" "$@" 2> >(tee "$tmp/log" >&2)
}

# Not before it is complete.
serve
has_open base.img
stop_nbdkit "$pid"
[ "$(grep -c "stands alone" "$tmp/log")" -eq 0 ]

cd "$tmp"
addcow-img stream vm.add-cow | grep "^vm.raw stands alone: "
cmp vm.raw want.img
cd - >/dev/null

serve
for ((i = 0; i < 300; i++)); do
    has_open base.img || break
    sleep 0.1
done
has_open base.img && exit 1
nbdcopy "$uri" - | cmp - "$tmp/want.img"
stop_nbdkit "$pid"
[ "$(grep -c "stands alone" "$tmp/log")" -eq 1 ]

rm "$tmp/base.img"
serve
nbdcopy "$uri" - | cmp - "$tmp/want.img"
/usr/bin/python3 - "$uri" <<'PY'
import nbd, sys

h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"new", 1000)
h.flush()
assert h.pread(5, 999)[1:4] == b"new"
PY
stop_nbdkit "$pid"
(cd "$tmp" && addcow-img stream vm.add-cow) | grep "^vm.raw stands alone: "

# With -r, too.
serve -r
[ "$(nbdcopy "$uri" - | md5sum)" = "$(md5sum < "$tmp/vm.raw")" ]
stop_nbdkit "$pid"

# But where a sector is missing.
/usr/bin/python3 - "$tmp/vm.add-cow" <<'PY'
import sys

with open(sys.argv[1], "r+b") as f:
    f.seek(2068 + 10)
    f.write(b"\xfe")
PY
fails_with "base.img: No such file" addcow-img stream "$tmp/vm.add-cow"
nbdkit -U - --filter="$addcow" file addcow="$tmp/vm.add-cow" --run true &&
    exit 1
exit 0
