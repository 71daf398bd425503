#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Cache requests are passed on to a server with the backing file, for what
# is not allocated, in whole blocks and in requests that it takes; and are
# no more than hints.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/nbd-backing.sh"

requires_filter log

size=$((4 * 1024 * 1024))
random_file base.img $size

# asked LOG KIND: what the server was asked, in order of offsets.
asked ()
{
    sed -n "s/.* $2 id=[0-9]* \(offset=[0-9a-fx]* count=[0-9a-fx]*\).*/\1/p" \
        "$1" | sort
}

start_base base.sock -r --filter=log file base.img logfile=base.log
addcow-img create -q -b "$base_uri" -F raw vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
nbdsh -u "$uri" -c '
h.pwrite(b"a" * 512, 65536)
h.cache(100000, 300)
h.cache(1000, 65536)
h.cache(100, 700)
h.cache((2 << 20) + 512, 1 << 20)
assert h.pread(1024, 65536) == b"a" * 512 + \
    open("base.img", "rb").read()[66048:66560]'
stop_nbdkit "$pid"
stop_nbdkit "$base_pid"
[ "$(asked base.log Cache)" = "offset=0x0 count=0x10000
offset=0x100000 count=0x100000
offset=0x10200 count=0x200
offset=0x10200 count=0x8600
offset=0x200 count=0x200
offset=0x200000 count=0x100000
offset=0x300000 count=0x200" ]
[ "$(asked base.log Read | wc -l)" -eq 1 ]

# How many are under way is bounded, not how many there can be.
start_base base.sock -r --filter=log file base.img logfile=many.log
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow
nbdsh -u "$uri" -c '
for at in range(1 << 20, 2 << 20, 4096):
    h.cache(512, at)
    h.pread(512, at)'
stop_nbdkit "$pid"
stop_nbdkit "$base_pid"
[ "$(asked many.log Cache | wc -l)" -ge 200 ]

# One that fails, or has gone, is not an error of the client's.
cat > fails.sh <<'END'
case $1 in
    get_size) echo 65536 ;;
    can_cache) echo native ;;
    cache) echo "EIO no" >&2; exit 1 ;;
    pread) head -c "$3" /dev/zero | tr '\0' z ;;
    *) exit 2 ;;
esac
END
chmod +x fails.sh
start_base base.sock -r sh fails.sh 2>/dev/null
rm vm.*
addcow-img create -q -b "$base_uri" -F raw vm.add-cow
start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
    addcow-backing-timeout="$patience" 2>log
nbdsh -u "$uri" -c '
for i in range(100):
    h.cache(65536, 0)
assert h.pread(512, 0) == b"z" * 512'
stop_nbdkit "$base_pid" KILL
nbdsh -u "$uri" -c 'h.cache(65536, 0)'
start_base base.sock -r sh fails.sh 2>/dev/null
nbdsh -u "$uri" -c '
h.cache(65536, 0)
assert h.pread(512, 512) == b"z" * 512'
# The server that is connected to does not end before that.
stop_nbdkit "$pid"
