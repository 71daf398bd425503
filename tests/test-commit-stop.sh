#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img commit is interrupted, killed, loses its server, has no more space
# or cannot write: the disk is what it was, and the next one goes on from
# there.  First the backing file is durable, then the bits, and then the image
# loses what it had.

source ./functions.sh
set -e
set -x

requires_filter delay
requires_filter log
requires prlimit --version
requires env --default-signal=INT true
requires qemu-img --version
requires qemu-nbd --version
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
verb=commit
source "$abs_srcdir/stream.sh"
source "$abs_srcdir/commit.sh"

size=$((1024 * 1024))
random_file base.orig $size
in_use="addcow-img: vm.add-cow: in use by another process"
interrupted="addcow-img: vm.add-cow: interrupted: run it again to go on"

# begin BACKING OPTION...: an overlay, of which something is allocated.
begin ()
{
    cp base.orig base.img
    padded base.orig $size
    fresh -b "$@" $size
    filled 1
    nr_old=$(nr_allocated)
}

# same: the disk is what it was, over the raw base.img.
same ()
{
    python <<'PY'
from overlay_files import *
assert content("vm.add-cow", read("base.img")) == read("disk")
PY
}

# partly: some of it was committed, not all.
partly ()
{
    local n
    n=$(nr_allocated)
    [ "$n" -gt 0 ]
    [ "$n" -lt "$nr_old" ]
    same
}

# goes_on: what was begun comes to its end.
goes_on ()
{
    addcow-img commit vm.add-cow >out 2>err || { cat out err; return 1; }
    cat out err
    grep -x "Image committed." out
    empty
    cmp base.img disk
}

### Signals.

# slow MILLISECONDS: a server of base.img that takes so long for each write.
slow ()
{
    rm -f log
    start_base base.sock --filter=log --filter=delay file base.img \
        wdelay="$1ms" delay-zero="$1ms" logfile="$PWD/log"
}

# has_written: some was written, or it has ended.
has_written ()
{
    [ "$(grep -cE ' \.\.\.(Write|Zero) ' log)" -ge 3 ] ||
        ! kill -0 "$streamer"
}

for signal in INT TERM HUP QUIT; do
    cp base.orig base.img
    slow 150
    begin "$base_uri" -F raw
    start_stream
    wait_for has_written
    if [ $signal = INT ]; then
        kill -USR1 "$streamer"
        wait_for grep -E '^    \([0-9]+\.[0-9]+/100%\) .* of ' err
        fails_with "$in_use" addcow-img commit vm.add-cow
    fi
    kill -$signal "$streamer"
    ends 1
    [ ! -s out ]
    grep -v '/100%) ' err > last
    echo "$interrupted" | cmp - last
    partly
    stop_nbdkit "$base_pid"
    start_base base.sock file base.img
    goes_on
    stop_nbdkit "$base_pid"
done

# Killed: nothing is known to be durable, and all is done again.
cp base.orig base.img
slow 150
begin "$base_uri" -F raw
start_stream
wait_for has_written
kill -KILL "$streamer"
ends 137
same
stop_nbdkit "$base_pid"
[ "$(nr_allocated)" -eq "$nr_old" ]
start_base base.sock file base.img
goes_on
stop_nbdkit "$base_pid"

# A server that does not answer is not waited for.
cp base.orig base.img
slow 1000000
begin "$base_uri" -F raw
start_stream
wait_for grep -E ' (Write|Zero) id' log
kill -TERM "$streamer"
ends 1
# Nor was it found out that it does not.
echo "$interrupted" | cmp - err
same
[ "$(nr_allocated)" -eq "$nr_old" ]
stop_nbdkit "$base_pid" KILL

# A server that goes takes with it what it had not flushed: it is not asked
# again.
cp base.orig base.img
slow 150
begin "$base_uri" -F raw
start_stream
wait_for has_written
stop_nbdkit "$base_pid" KILL
cp base.orig base.img
start_base base.sock file base.img
ends 1
grep -F "base.sock: connection lost: " err
grep -F "base.sock: Input/output error" err
[ "$(nr_allocated)" -eq "$nr_old" ]
same
goes_on
stop_nbdkit "$base_pid"

### No space.

# What fits is committed.
begin base.img
RUN=(prlimit --fsize=$((size / 2)))
fails_with "base.img: File too large" addcow-img commit vm.add-cow
RUN=()
partly
goes_on
# Nor can it become as long as the disk.
head -c 1000 base.orig > short.img
fresh -b short.img -F raw $size
padded short.img $size
filled 2
cp short.img short.copy
RUN=(prlimit --fsize=$((size / 2)))
fails_with "short.img: File too large" addcow-img commit vm.add-cow
RUN=()
cmp short.img short.copy
commit
cmp short.img disk

if [ -n "$root" ] && mkdir small &&
        mount -t tmpfs -o size=$((size / 2)) addcow-test small; then
    cleanup_fn "umount $tmp/t/small"
    # All of it is data, and none of the backing file was.
    cp base.orig disk
    truncate -s $size small/base.img
    fresh -b small/base.img $size
    cp disk vm.raw
    python <<'PY'
from overlay_files import *
data = read("vm.add-cow")
write("vm.add-cow", data[:BITMAP_AT] + b"\xff" * (len(data) - BITMAP_AT))
PY
    nr_old=$(nr_allocated)
    fails_with "base.img: No space left on device" addcow-img commit vm.add-cow
    fails_with "base.img: No space left on device" addcow-img commit vm.add-cow
    rm base.img
    ln -s small/base.img .
    same
    mount -o remount,size=$((size * 2)) small
    goes_on
    rm base.img
fi

### What fails.

export FAULT_LOG=$tmp/log FAULT_TRIGGER=$tmp/trigger
export FAULT_CALL FAULT_FILE FAULT_ERRNO

# commit_with_faults: with fault_inject in it.
commit_with_faults ()
{
    env LD_PRELOAD="${_preload:+$_preload:}$fault_inject" \
        "${VG[@]}" "$addcow_img" commit vm.add-cow
}

# fault CALL FILE ERRNO TEXT
fault ()
{
    FAULT_CALL=$1 FAULT_FILE=$2 FAULT_ERRNO=$3
    touch "$tmp/trigger"
    : > "$tmp/log"
    fails_with "$4" commit_with_faults
    rm "$tmp/trigger"
    cat "$tmp/log"
    same
}

# Nothing is taken for written that may not be.
begin base.img
fault fdatasync base.img 5 "base.img: Input/output error"
[ "$(nr_allocated)" -eq "$nr_old" ]
[ "$(grep -c "failed fdatasync base.img" "$tmp/log")" -eq 1 ]
if grep -E "fallocate vm|pwrite vm" "$tmp/log"; then exit 1; fi
goes_on
begin base.img
fault fallocate base.img 5 "base.img: Input/output error"
goes_on
begin base.img -F raw
fault fsync base.img 5 "base.img: Input/output error"
empty
goes_on
# That there can be no holes is no error.
begin base.img
FAULT_CALL=fallocate FAULT_FILE=vm.raw FAULT_ERRNO=95
touch "$tmp/trigger"
commit_with_faults
rm "$tmp/trigger"
[ "$(nr_allocated)" -eq 0 ]
cmp base.img disk
served
# Bits that cannot be made durable: the image keeps what it has.
begin base.img
cp vm.raw raw.copy
fault fallocate vm.add-cow 28 "vm.add-cow: No space left on device"
cmp vm.raw raw.copy
goes_on
begin base.img
FAULT_CALL=fdatasync FAULT_FILE=vm.add-cow FAULT_ERRNO=5
touch "$tmp/trigger"
fails_with "vm.add-cow: Input/output error" commit_with_faults
rm "$tmp/trigger"
same
goes_on

### The order.

begin base.img -F raw
: > "$tmp/log"
commit_with_faults
# Runs of the same are one; the system's copies are not in the log.
cut -d ' ' -f 1,2 "$tmp/log" | grep -v "pwrite base" |
    sed 's/pwrite vm.add-cow/bits/; s/fallocate vm.add-cow/bits/' | uniq > order
diff order - <<'ORDER'
fdatasync vm.add-cow
fallocate base.img
fdatasync base.img
bits
fdatasync vm.add-cow
fallocate vm.raw
fsync base.img
bits
fdatasync vm.add-cow
ORDER
unset FAULT_LOG FAULT_TRIGGER FAULT_CALL FAULT_FILE FAULT_ERRNO

### What others do just before the backing file is locked.

# between COMMAND
between ()
{
    FAULT_RUN="env -u LD_PRELOAD sh -c '$1'" FAULT_RUN_CALL=fcntl \
        FAULT_RUN_FILE=base.img commit_with_faults
}

# It becomes longer than the disk: what it has there stays.
head -c 1000 base.orig > short.orig
cp short.orig base.img
padded base.img $size
fresh -b base.img $size
filled 3
between "truncate -s $size base.img; echo more >> base.img"
empty
cmp -n $size base.img disk
[ "$(tail -c 5 base.img)" = more ]
# It is replaced: the other one is not written, nor is the one that is gone.
begin base.img
fails_with "base.img: in use by another process" \
    between "cp base.img new; mv new base.img"
[ "$(nr_allocated)" -eq "$nr_old" ]
same
goes_on
# It is written to: there is a warning.
begin base.img -F raw
between "touch -d 2001-02-03 base.img" 2>err
grep -F "base.img: warning: has changed since it became the backing file" err
empty
cmp base.img disk
