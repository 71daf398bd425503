#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# When addcow-img check cannot say what is wrong, or cannot mend it: wrong
# arguments, files that are none or in use, servers that are gone, errors.
# Every file is as it was then.

source ./functions.sh
set -e
set -x

requires qemu-nbd --version
requires qemu-img --version
requires_plugin file
source "$abs_srcdir/bad-input.sh"
source "$abs_srcdir/check.sh"

new
at $((full - 1)) '\xfe'
hints 'x\0'

# bad TEXT ARGUMENT...: status 1.
bad ()
{
    refused "$1" addcow-img check "${@:2}"
}

# both TEXT FILE: with -r and without, one of them without valgrind.
both ()
{
    bad "$@" && unwatched bad "$1" -r --output=json "$2"
}

# none TEXT FILE: status 63.
none ()
{
    local status=0
    keep
    in_time addcow-img check "${@:2}" > "$tmp/stdout" 2> "$tmp/stderr" ||
        status=$?
    cat "$tmp/stdout" "$tmp/stderr"
    [ $status -eq 63 ] && [ ! -s "$tmp/stdout" ] &&
        [ "$(wc -l < "$tmp/stderr")" -eq 1 ] &&
        grep -qF "addcow-img: $2: $1" "$tmp/stderr" && kept
}

### Arguments.

help="(see addcow-img check --help)"
bad "exactly one FILE is needed $help"
bad "exactly one FILE is needed $help" vm.add-cow vm.add-cow
bad "exactly one FILE is needed $help" -r all vm.add-cow
bad "FILE must not be empty $help" ''
bad "unknown option '-x' $help" -x vm.add-cow
bad "unknown option '-f' $help" -qf vm.add-cow
bad "unknown option '--force' $help" vm.add-cow --force
bad "'--repair=all' $help" --repair=all vm.add-cow
bad "'--quiet=1' $help" --quiet=1 vm.add-cow
bad "a value is missing after '--output' $help" vm.add-cow --output
for output in '' xml JSON 'human '; do
    bad "--output must be human or json $help" --output="$output" vm.add-cow
done
bad "--output: No such file or directory" -- --output

# What is not read is not told to have been.
to_full ()
{
    addcow-img check "$@" > /dev/full
}
refused "standard output: No space left on device" to_full vm.add-cow
refused "standard output: No space left on device" to_full --output=json \
    vm.add-cow

### Files.

mkfifo fifo
mkdir folder
ln -s loop loop
both "missing: No such file or directory" missing
both "folder: Is a directory" folder
both "fifo: not a regular file" fifo
both "/dev/null: not a regular file" /dev/null
both "loop: Too many levels of symbolic links" loop
both "vm.raw/x: Not a directory" vm.raw/x

for name in empty 7-bytes text zeroes magic; do
    case $name in
        empty) : > $name ;;
        7-bytes) printf 'ADD_COW' > $name ;;
        text) echo "This is a text." > $name ;;
        zeroes) head -c 5000 /dev/zero > $name ;;
        magic) cp vm.add-cow $name; at 0 'a' $name ;;
    esac
    none "not an add-cow file" $name
    unwatched none "not an add-cow file" $name -r
done
for version in '\0' '\2' '\xff'; do
    cp vm.add-cow version
    at 11 "$version" version
    none "unknown add-cow version" version
    unwatched none "unknown add-cow version" version --output=json
    truncate -s 12 version
    none "unknown add-cow version" version -r
done

# Who may not read it, or mend it.
chmod 666 vm.add-cow vm.raw base.img
for name in vm.add-cow vm.raw base.img; do
    chmod 000 $name
    refused "$name: Permission denied" as_nobody addcow-img check vm.add-cow
    refused "$name: Permission denied" as_nobody addcow-img check -r vm.add-cow
    chmod 666 $name
done
chmod 444 vm.add-cow vm.raw base.img
refused "vm.add-cow: Permission denied" as_nobody addcow-img check -r vm.add-cow
as_nobody found 3 vm.add-cow stray-bits hint-no-key
chmod 666 vm.add-cow vm.raw base.img

mkdir ro
if [ -n "$root" ] && mount -t tmpfs addcow-test ro; then
    cleanup_fn "umount $tmp/t/ro"
    cp vm.add-cow vm.raw base.img ro
    mount -o remount,ro ro
    bad "ro/vm.add-cow: Read-only file system" -r ro/vm.add-cow
    found 3 ro/vm.add-cow stray-bits hint-no-key
fi

# The image and the backing file are never written.
chmod 444 vm.raw base.img
cp vm.add-cow copy.add-cow
as_nobody mended 0 vm.add-cow "stray-bits(fixed)" "hint-no-key(fixed)"
mv copy.add-cow vm.add-cow
chmod 666 vm.add-cow vm.raw base.img

### In use.

in_use="in use by another process"
start_nbdkit server --filter="$addcow" file addcow=vm.add-cow
both "vm.add-cow: $in_use" vm.add-cow
stop_nbdkit "$pid"
# Who only reads it may go on, as long as nothing is mended.
start_nbdkit server -r --filter="$addcow" file addcow=vm.add-cow
found 3 vm.add-cow stray-bits hint-no-key
bad "vm.add-cow: $in_use" -r vm.add-cow
stop_nbdkit "$pid"

# qemu FORMAT FILE: QEMU has it for writing.
qemu_pid=
cleanup_fn '[ -z "$qemu_pid" ] || kill "$qemu_pid"'
qemu ()
{
    qemu-nbd --persistent --socket="$tmp/qemu" --format="$1" "$2" &
    qemu_pid=$!
    while ! [ -e "$tmp/qemu" ]; do
        kill -0 "$qemu_pid"
        sleep 0.1
    done
}
qemu_end ()
{
    kill "$qemu_pid"
    wait "$qemu_pid" || :
    qemu_pid=
    rm -f "$tmp/qemu"
}
for name in vm.raw base.img; do
    qemu raw $name
    both "$name: $in_use" vm.add-cow
    qemu_end
done
qemu-img create -q -f qcow2 base.qcow2 $size
metadata q.add-cow size=$size backing=base.qcow2 image=vm.raw
at 23 'format=qcow2' q.add-cow
qemu qcow2 base.qcow2
both "base.qcow2: $in_use" q.add-cow
qemu_end
found 0 q.add-cow
# One below.
cp vm.add-cow mid.add-cow
truncate -s $size top.raw
metadata top.add-cow size=$size backing=mid.add-cow image=top.raw
at 24 'format=add-cow' top.add-cow
found 0 top.add-cow
start_nbdkit server --filter="$addcow" file addcow=mid.add-cow
both "mid.add-cow: $in_use" top.add-cow
stop_nbdkit "$pid"

### Servers.

# uri: the overlay's backing file is what $uri has, and may be $1 long.
uri ()
{
    metadata n.add-cow size=$size backing="$uri" image=vm.raw
    at $((12 + ${#uri} + 1)) "format=raw\\0size=$1\\0" n.add-cow
}
start_nbdkit nbd -r file base.img
uri $size
found 0 n.add-cow
uri $((size - 1))
found 3 n.add-cow backing-changed
stop_nbdkit "$pid"
both "nbd" n.add-cow
# It is not asked where it is not needed.
head -c 125 /dev/zero | tr '\0' '\377' |
    dd of=n.add-cow bs=1 seek=2068 conv=notrunc status=none
at $((full - 1)) '\x01' n.add-cow
found 0 n.add-cow

# QEMU is not there.
nowhere ()
{
    "${RUN[@]}" env PATH=/nowhere "$addcow_img" "$@"
}
refused "qemu-nbd is needed to read it" nowhere check q.add-cow

### Errors.

# The file system has no place for it.
truncate -s 2100 vm.add-cow
limited ()
{
    "${RUN[@]}" prlimit --fsize=2150 "${VG[@]}" "$addcow_img" "$@"
}
refused "vm.add-cow: File too large" limited check -r vm.add-cow
mended 0 vm.add-cow "bitmap-truncated(fixed)" "hint-no-key(fixed)"

# A disk that cannot write.
new
export FAULT_TRIGGER=$tmp/trigger FAULT_FILE=vm.add-cow FAULT_ERRNO=5
export FAULT_CALL
faulty ()
{
    "${RUN[@]}" env LD_PRELOAD="${_preload:+$_preload:}$fault_inject" \
        "${VG[@]}" "$addcow_img" "$@"
}
for FAULT_CALL in pwrite fdatasync pread; do
    new
    at $((full - 1)) '\xfe'
    hints 'x\0'
    touch "$FAULT_TRIGGER"
    fails_in_time "vm.add-cow: Input/output error" faulty check -r vm.add-cow
    rm "$FAULT_TRIGGER"
    addcow-img check -r vm.add-cow
    found 0 vm.add-cow
done
