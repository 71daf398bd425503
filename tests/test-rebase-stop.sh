#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# addcow-img rebase crashes, is interrupted or killed, loses a backing file or
# has no more space: the overlay is on the one or the other backing file, the
# disk is what it was, and the next one goes on from there.

source ./functions.sh
set -e
set -x

requires_filter error
requires_filter delay
requires prlimit --version
requires env --default-signal=INT true
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/nbd-backing.sh"
source "$abs_srcdir/crash.sh"
source "$abs_srcdir/rebase.sh"

# restored: vm.add-cow and vm.raw as they were at first; and nothing else.
restored ()
{
    rm -f vm.* .addcow-*
    cp old.add-cow vm.add-cow
    cp --sparse=always old.raw vm.raw
    blocks=$(stat -c %b vm.raw)
}

# of_old, of_new: which header there is, of old.add-cow or new.add-cow.
of_old ()
{
    cmp -n 2068 vm.add-cow old.add-cow
}

of_new ()
{
    cmp -n 2068 vm.add-cow new.add-cow
}

# goes_on: what was begun comes to its end, with the files that are local.
goes_on ()
{
    rebase -b new.img -F raw
    rm -f .addcow-*
    of_new
    rebase_py kept new.img
    md5sum -c --quiet sums
}

# begin SIZE [all]: an overlay to begin with, and its header as it will be;
# some of the two backing files differs, or all.
begin ()
{
    local at
    random_file base.img "$1"
    if [ -n "$2" ]; then
        random_file new.img "$1"
    else
        cp base.img new.img
        for ((at = 3000; at + 9000 < $1; at += 20000)); do
            dd if=/dev/urandom of=new.img bs=1 seek=$at count=2000 conv=notrunc
        done
    fi
    md5sum base.img new.img > sums
    rebase_py make "$1" 1 base.img
    addcow-img rebase -u -b base.img -F raw vm.add-cow
    cp vm.add-cow old.add-cow
    cp vm.raw old.raw
    addcow-img rebase -u -b new.img -F raw vm.add-cow
    cp vm.add-cow new.add-cow
}

### Crashes.

begin 100352
look ()
{
    # The header is one of the two, and so is the disk: "same" reads by it.
    if of_new; then
        rebase_py kept new.img
    else
        of_old
        [ "$crash_at" != "done" ]
        rebase_py same
        rebase_py subset new.img
    fi
    [ "$(find . -name '.addcow-*' | wc -l)" -le 1 ]
    unwatched addcow-img check -q vm.add-cow
    [ -z "$crash_again" ] || goes_on
}
crash_again=yes
[ -z "$ADDCOW_VALGRIND" ] || crash_again=
crash_each restored look addcow-img rebase -b new.img -F raw vm.add-cow
grep "renameat2" "$tmp/crash-calls"
grep "half copy_file_range" "$tmp/crash-calls" ||
    grep "half pwrite" "$tmp/crash-calls"

# With -u nothing else is ever touched.
look_unsafe ()
{
    cmp vm.raw old.raw
    cmp -i 2068 vm.add-cow old.add-cow
    if ! of_new; then
        of_old
        [ "$crash_at" != "done" ]
    fi
}
crash_each restored look_unsafe addcow-img rebase -u -b new.img -F raw \
    vm.add-cow

### The order, and what fails.

export FAULT_LOG=$tmp/log FAULT_TRIGGER=$tmp/trigger
export FAULT_CALL FAULT_FILE FAULT_ERRNO

faulty ()
{
    "${RUN[@]}" env --default-signal \
        LD_PRELOAD="${_preload:+$_preload:}$fault_inject" \
        "${VG[@]}" "$addcow_img" rebase "$@"
}

# The syncs and the new name, after the last write to the image.
restored
: > "$tmp/log"
faulty -b new.img -F raw vm.add-cow
sed 's/\.addcow-[A-Za-z0-9]*/TEMP/' "$tmp/log" > "$tmp/calls"
grep -n " vm.raw " "$tmp/calls" | grep -c pwrite
sed -n '/^fdatasync vm.raw /,$p' "$tmp/calls" | cut -d' ' -f1,2 | uniq \
    > "$tmp/order"
diff "$tmp/order" - <<'ORDER'
fdatasync vm.raw
pwrite vm.add-cow
fdatasync vm.add-cow
pwrite TEMP
fsync TEMP
renameat2 vm.add-cow
fsync t
ORDER
# Nothing else but the first sync was before that.
sed '/^fdatasync vm.raw /,$d' "$tmp/calls" | cut -d' ' -f1,2 | sort -u |
    diff - <(echo "fdatasync vm.add-cow"; echo "pwrite vm.raw")

touch "$tmp/trigger"
FAULT_ERRNO=5
io="Input/output error"
FAULT_CALL=fdatasync FAULT_FILE=vm.raw
restored
fails_with "vm.raw: $io" faulty -b new.img -F raw vm.add-cow
cmp vm.add-cow old.add-cow
rebase_py same
goes_on
FAULT_CALL=pwrite FAULT_FILE=vm.add-cow
restored
fails_with "vm.add-cow: $io" faulty -b new.img -F raw vm.add-cow
cmp vm.add-cow old.add-cow
rebase_py same
goes_on
FAULT_CALL=renameat2 FAULT_FILE=vm.add-cow
restored
fails_with "vm.add-cow: $io" faulty -b new.img -F raw vm.add-cow
of_old
rebase_py same
rebase_py grown new.img
[ "$(find . -name '.addcow-*')" = "" ]
goes_on
# It has its name, and that may not be durable.
FAULT_CALL=fsync FAULT_FILE=/t
restored
fails_with "vm.add-cow: $io" faulty -b new.img -F raw vm.add-cow
of_new
rebase_py kept new.img
rm "$tmp/trigger"

# Who comes between does not get it: neither of the files that have its name,
# the one until it is replaced and the other one from then on.
export FAULT_RUN FAULT_RUN_CALL FAULT_RUN_FILE
for between in renameat2:vm.add-cow fsync:/t; do
    IFS=: read -r FAULT_RUN_CALL FAULT_RUN_FILE <<< "$between"
    FAULT_RUN="env -u LD_PRELOAD $addcow_img stream vm.add-cow 2>$tmp/between"
    restored
    faulty -b new.img -F raw vm.add-cow
    grep "vm.add-cow: in use by another process" "$tmp/between"
    rm "$tmp/between"
    rebase_py kept new.img
done
unset FAULT_RUN
goes_on

### Signals.

# All differs.
begin $((8 << 20)) all

# start_rebase [OPTION...]: in the background, to the files out and err.
start_rebase ()
{
    # Jobs of a script ignore SIGINT, and so would the program.
    env --default-signal=INT "${VG[@]}" "$addcow_img" rebase "$@" \
        -b new.img -F raw vm.add-cow >out 2>err &
    job=$!
}
job=
# shellcheck disable=SC2016 # the one there is at the end
cleanup_fn '[ -z "$job" ] || kill -KILL "$job" || :'

# ends STATUS: it ends, with that exit status.
ends ()
{
    local status=0
    wait "$job" || status=$?
    job=
    cat out err
    [ $status -eq "$1" ] && [ ! -s out ]
}

# has_kept: something is in the image, or it has ended.
has_kept ()
{
    [ "$(stat -c %b vm.raw)" -gt "$blocks" ] || ! kill -0 "$job"
}

# With a slow server in place of the old backing file; local: with base.img.
slow ()
{
    restored
    addcow-img rebase -u -b "$base_uri" -F raw vm.add-cow
}

local_again ()
{
    rm -f .addcow-*
    addcow-img rebase -u -b base.img -F raw vm.add-cow
    of_old
}

# A part was kept, and not all.
partly ()
{
    local_again
    rebase_py same
    rebase_py subset new.img
    cmp -s vm.add-cow old.add-cow && return 1
    if rebase_py grown new.img; then return 1; fi
}

interrupted="addcow-img: vm.add-cow: interrupted: run it again to go on"
start_base base.sock -r --filter=delay file base.img rdelay=400ms
for signal in INT TERM HUP QUIT; do
    slow
    start_rebase
    wait_for has_kept
    kill -s $signal "$job"
    ends 1
    echo "$interrupted" | cmp - err
    partly
done
goes_on

# One that cannot be caught; what it left in memory is lost.
slow
start_rebase
wait_for has_kept
kill -KILL "$job"
ends 137
addcow-img info vm.add-cow | grep -x "in use: false"
local_again
rebase_py same
goes_on

# How far it is; and meanwhile nobody else may have it.
slow
start_rebase -p
wait_for has_kept
kill -USR1 "$job"
wait_for grep -E '^    \([0-9]+\.[0-9]+/100%\) .* of [0-9.]+ MiB' err
kill -STOP "$job"
addcow-img info vm.add-cow | grep -x "in use: true"
fails_with "vm.add-cow: in use by another process" \
    addcow-img rebase -b '' vm.add-cow
fails_with "vm.add-cow: in use by another process" \
    addcow-img rebase -u -b '' vm.add-cow
kill -CONT "$job"
ends 0
of_new
rebase_py kept new.img
stop_nbdkit "$base_pid"

### A backing file fails.

start_base base.sock -r --filter=error file base.img \
    error-pread=EIO error-pread-rate=100% error-pread-file="$PWD/fail"
slow
: > fail
fails_with "addcow-img: $base_uri: Input/output error" \
    addcow-img rebase -b new.img -F raw vm.add-cow
rm fail
local_again
rebase_py same
goes_on
stop_nbdkit "$base_pid"
start_base base.sock -r --filter=error file new.img \
    error-pread=EIO error-pread-rate=100% error-pread-file="$PWD/fail"
restored
: > fail
fails_with "addcow-img: $base_uri: Input/output error" \
    addcow-img rebase -b "$base_uri" -F raw vm.add-cow
rm fail
of_old
rebase_py same
goes_on
stop_nbdkit "$base_pid"

# One that does not answer, nor will.
for which in old new; do
    restored
    start_base base.sock -r --filter=delay file base.img rdelay=400ms
    cleanup_fn "kill -CONT $base_pid 2>/dev/null || :"
    slow
    if [ $which = new ]; then
        # Slow are both.
        stop_nbdkit "$base_pid"
        start_base base.sock -r --filter=delay file new.img rdelay=400ms
        cleanup_fn "kill -CONT $base_pid 2>/dev/null || :"
        restored
        env --default-signal=INT "${VG[@]}" "$addcow_img" rebase \
            -b "$base_uri" -F raw vm.add-cow >out 2>err &
        job=$!
    else
        start_rebase
    fi
    wait_for has_kept
    kill -STOP "$base_pid"
    kill -TERM "$job"
    ends 1
    tail -n 1 err | grep -xF "$interrupted"
    kill -CONT "$base_pid"
    stop_nbdkit "$base_pid"
    local_again
    rebase_py same
    goes_on
done

### No space.

restored
RUN=(prlimit --fsize=$(($(stat -c %s base.img) / 2)))
fails_with "vm.raw: File too large" \
    addcow-img rebase -b new.img -F raw vm.add-cow
RUN=()
partly
goes_on

# The new metadata file has no room.
restored
RUN=(prlimit --fsize=2048)
fails_with "vm.add-cow: File too large" \
    addcow-img rebase -u -b new.img -F raw vm.add-cow
RUN=()
cmp vm.add-cow old.add-cow
[ "$(find . -name '.addcow-*')" = "" ]

if [ -n "$root" ] && mkdir small &&
        mount -t tmpfs -o size=$(($(stat -c %s base.img) / 2)) addcow-test \
              small; then
    cleanup_fn "umount $tmp/t/small"
    restored
    cp --sparse=always old.raw small/vm.raw
    rm vm.raw
    ln -s small/vm.raw .
    for i in 1 2; do
        fails_with "vm.raw: No space left on device" \
            addcow-img rebase -b new.img -F raw vm.add-cow
    done
    partly
    mount -o remount,size=$(($(stat -c %s base.img) * 2)) small
    goes_on
    rm vm.raw small/*

    # There is room for one file of this length and not for two.
    restored
    mv vm.add-cow small
    ln -s small/vm.add-cow .
    ln -s ../vm.raw ../base.img ../new.img small
    mount -o remount,size=$(($(stat -c %b small/vm.add-cow) * 512 + 4096)) small
    head -c 100000 /dev/zero > small/filler || :
    cp small/vm.add-cow before
    fails_with "vm.add-cow: No space left on device" \
        addcow-img rebase -u -b new.img vm.add-cow
    cmp before small/vm.add-cow
    fails_with "vm.add-cow: No space left on device" \
        addcow-img rebase -b new.img -F raw vm.add-cow
    of_old
    rebase_py same
    rebase_py grown new.img
    rm small/filler
    mount -o remount,size=1M small
    goes_on
    [ -L vm.add-cow ]
fi
