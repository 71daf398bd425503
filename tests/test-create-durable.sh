#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# What addcow-img create makes is synced before it has its name, and the
# folder after; what cannot be made durable is not there; nothing that
# somebody else makes meanwhile is replaced or removed; a signal finds all
# or nothing.

source ./functions.sh
set -e
set -x

source "$abs_srcdir/bad-input.sh"

export FAULT_LOG=$tmp/log FAULT_TRIGGER=$tmp/trigger
export FAULT_CALL FAULT_FILE FAULT_ERRNO

# create ARGUMENT...: with fault_inject in it.
create ()
{
    "${RUN[@]}" env --default-signal \
        LD_PRELOAD="${_preload:+$_preload:}$fault_inject" \
        "${VG[@]}" "$addcow_img" create "$@"
}

# The log, with temporary names as one.
logged ()
{
    sed 's/\.addcow-[A-Za-z0-9]*/TEMP/' "$tmp/log"
}

### The order.

: > "$tmp/log"
create -q vm.add-cow 1M
logged | grep -v ^pwrite > "$tmp/order"
diff "$tmp/order" - <<'ORDER'
fsync TEMP 0 0
renameat2 vm.raw 0 1
fsync t 0 0
fsync TEMP 0 0
renameat2 vm.add-cow 0 1
fsync t 0 0
ORDER

# Over a file that is there, and by a name of the longest.  Nobody knows whether
# an image that is there is durable.
: > "$tmp/log"
create -q -f -i vm.raw vm.add-cow 1M
logged | grep -v ^pwrite > "$tmp/order"
diff "$tmp/order" - <<'ORDER'
fsync vm.raw 0 0
fsync t 0 0
fsync TEMP 0 0
renameat2 vm.add-cow 0 0
fsync t 0 0
ORDER
long=$(printf '%0251d' 0).raw
create -q -i '' "$long" 1M
rm "$long" vm.*

### What fails.

touch "$tmp/trigger"
random_file old 5000
for FAULT_ERRNO in 5 28; do
    FAULT_CALL=fsync FAULT_FILE=/t
    if [ $FAULT_ERRNO -eq 5 ]; then text="Input/output error"
    else text="No space left on device"; fi
    keep
    fails_in_time "vm.raw: $text" create vm.add-cow 1M
    fails_in_time "vm.add-cow: $text" create -i '' vm.add-cow 1M
    FAULT_CALL=renameat2 FAULT_FILE=vm.add-cow
    fails_in_time "vm.add-cow: $text" create vm.add-cow 1M
    FAULT_CALL=renameat2 FAULT_FILE=vm.raw
    fails_in_time "vm.raw: $text" create vm.add-cow 1M
    kept
done
# Nor is there an overlay of an image that cannot.
truncate -s 1M image
keep
FAULT_CALL=fsync FAULT_FILE=/t FAULT_ERRNO=5
fails_in_time "image: Input/output error" create -i image vm.add-cow 1M
FAULT_FILE=image
fails_in_time "image: Input/output error" create -i image vm.add-cow 1M
kept
# The metadata file has replaced what was there: its image must stay.
mkdir elsewhere
truncate -s 1M elsewhere/image
FAULT_FILE=/t
fails_in_time "old: Input/output error" create -f -i elsewhere/image old 1M
addcow-img info old
fails_in_time "old: Input/output error" create -f -i elsewhere/image.raw old 1M
[ -e elsewhere/image.raw ]
# A file system that cannot rename without replacing.
FAULT_CALL=renameat2 FAULT_FILE=vm.add-cow FAULT_ERRNO=22
create -q vm.add-cow 1M
addcow-img info vm.add-cow
keep
fails_in_time "exists already" create vm.add-cow 1M
kept
# There the temporary name stays: the other one goes, or all is well.
rm vm.*
keep
FAULT_UNLINK=1 fails_in_time "vm.add-cow: Input/output error" \
    create vm.add-cow 1M
kept
FAULT_UNLINK=2 create -q -i '' vm.add-cow 1M
addcow-img info vm.add-cow
rm vm.add-cow .addcow-*
# A metadata file that cannot be removed again keeps its image.
mkdir sub
FAULT_CALL=fsync FAULT_FILE=/t/sub FAULT_ERRNO=5
FAULT_UNLINK=1 fails_in_time "vm.add-cow: Input/output error" \
    create -i ../vm.raw sub/vm.add-cow 1M
addcow-img info sub/vm.add-cow
[ -e vm.raw ]
rm -r sub vm.raw
rm -f "$tmp/trigger"

### What somebody else makes.

export FAULT_MAKE
for FAULT_MAKE in other.add-cow other.raw; do
    fails_in_time "$FAULT_MAKE: File exists" create other.add-cow 1M
    [ "$(cat $FAULT_MAKE)" = mine ]
    rm $FAULT_MAKE
    [ -z "$(find . -name 'other.*' -o -name '.addcow-*')" ]
done
touch "$tmp/trigger"
FAULT_MAKE=other.add-cow FAULT_FILE=other.add-cow
fails_in_time "other.add-cow: File exists" create other.add-cow 1M
[ "$(cat other.add-cow)" = mine ]
rm other.add-cow "$tmp/trigger"
[ -z "$(find . -name 'other.*' -o -name '.addcow-*')" ]
unset FAULT_MAKE

### Who else wants the image, while there is no metadata file yet.

export FAULT_RUN FAULT_RUN_CALL=renameat2 FAULT_RUN_FILE=a.add-cow

# An overlay of the same name.
FAULT_RUN="'$addcow_img' create -q a.add-cow 1M 2>'$tmp/other'"
create -q a.add-cow 1M
grep -qF "a.raw: in use by another process" "$tmp/other"
[ "$(find . -name 'a.*' | sort | tr '\n' ' ')" = "./a.add-cow ./a.raw " ]
rm a.*
# Another overlay, of an image that goes again.
FAULT_RUN="'$addcow_img' create -q -i a.raw b.add-cow 1M 2>'$tmp/other'"
FAULT_MAKE=a.add-cow fails_in_time "a.add-cow: File exists" create a.add-cow 1M
grep -qF "a.raw: in use by another process" "$tmp/other"
rm a.add-cow
[ -z "$(find . -name '[ab].*' -o -name '.addcow-*')" ]
# What has the name of the image now is somebody else's.
echo theirs > theirs
FAULT_RUN="mv theirs a.raw"
FAULT_MAKE=a.add-cow fails_in_time "a.add-cow: File exists" create a.add-cow 1M
[ "$(cat a.raw)" = theirs ]
rm a.*

### Who else wants FILE, which was opened and is not locked yet.

truncate -s 1M kept.raw
create -q -i kept.raw a.add-cow 1M
FAULT_RUN_CALL=fcntl
FAULT_RUN="'$addcow_img' create -q -f -i kept.raw a.add-cow 512K"
fails_in_time "a.add-cow: in use by another process" \
    create -f -i kept.raw a.add-cow 256K
addcow-img info a.add-cow | grep -F "(524288 bytes)"
rm a.add-cow
# With -f too, a FILE that was not there is not replaced.
FAULT_MAKE=a.add-cow fails_in_time "a.add-cow: File exists" \
    create -f -i kept.raw a.add-cow 256K
[ "$(cat a.add-cow)" = mine ]
rm a.add-cow kept.raw
unset FAULT_RUN FAULT_RUN_CALL FAULT_RUN_FILE

### Signals: both files are there, or neither.

export FAULT_SIGNAL
for FAULT_SIGNAL in 1 2 15; do
    status=0
    create -q signal.add-cow 1M || status=$?
    [ $status -eq $((128 + FAULT_SIGNAL)) ]
    [ -z "$(find . -name '.addcow-*')" ]
    [ "$(find . -name 'signal.*' | sort | tr '\n' ' ')" = \
        "./signal.add-cow ./signal.raw " ]
    addcow-img info signal.add-cow
    rm signal.*
done
