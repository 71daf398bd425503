#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# A guest writes to an ext4 file system on an overlay that is being filled,
# and tells which of its files are durable.  In the middle of that the server
# is killed.  Then the file system's journal is replayed, it is clean, and
# every file that was told of is there, with its content; and the guest goes
# on with it.
#
# The disk of the killed server is checked from outside, and then by the next
# boot.  ADDCOW_KILLS kills; the moments are drawn from ADDCOW_SEED.

source ./functions.sh
set -e
set -x

requires /usr/bin/python3 --version
source "$abs_srcdir/guest.sh"

RANDOM=${ADDCOW_SEED:=$RANDOM}
echo "seed: $ADDCOW_SEED"
kills=2
if [ -n "$ADDCOW_LONG" ]; then kills=50; fi
kills=${ADDCOW_KILLS:-$kills}

# A line "DURABLE FILE SUM" says that FILE is there from now on.  What is told
# is read from the disk only by the next boot.  Other files come and go, so
# that the journal has something to do.
make_initrd <<'END_OF_RUN'
tell ()
{
    set -- $1 $(sha256sum < $1)
    echo "DURABLE $1 $2"
}

# files FIRST: write for ever.
files ()
{
    n=$1
    while :; do
        n=$((n + 1))
        dd if=/dev/urandom of=$n.file bs=$((n * 7919 % 9000 + 1)) \
            count=$((n % 9 + 1)) conv=fsync 2>/dev/null
        tell $n.file
        # In the middle of an old one.
        dd if=/dev/urandom of=scratch bs=3000 seek=$((n % 50)) count=3 \
            conv=notrunc 2>/dev/null
        case $((n % 5)) in
        0)
            dd if=/dev/urandom of=base.file bs=5000 seek=$((n % 600)) \
                count=2 conv=notrunc,fsync 2>/dev/null
            ;;
        1)
            mkdir -p dir
            cp $n.file dir/gone
            mv dir/gone dir/$n
            ;;
        2)
            cp $n.file d/new
            mv d/new d/$n
            sync
            tell d/$n
            ;;
        3)
            rm -f scratch
            ;;
        4)
            rm -rf dir
            ;;
        esac
    done
}

run ()
{
    set -e
    mount -t ext4 -o discard /dev/vda /mnt
    cd /mnt
    mkdir -p d
    sums $(ls -d *.file d/* 2>/dev/null)
    echo BOOT $boot
    if [ $boot -lt 1000 ]; then files $((boot * 1000)); fi
    cd /
    umount /mnt
    echo UNMOUNTED
}
END_OF_RUN

mkdir files
random_file files/base.file 3000000
random_file files/large.file 8000000
truncate -s 64M base.img
mke2fs -q -F -t ext4 -d files base.img
cp base.img base.copy
addcow-img create -q -b base.img vm.add-cow

# Nothing is committed but by the flushes and FUA writes of the guest, as
# filling, which would when it is done, takes longer than the test.
start ()
{
    start_nbdkit sock --filter="$addcow" file addcow=vm.add-cow \
        addcow-commit-interval=0 addcow-on-read=true addcow-hydrate=true \
        addcow-hydrate-rate=20K
}

# What was told, of all boots, and what is there.
cat > told.py <<'PY'
import sys

def sums(name, word):
    """{file: sum} of whole lines that begin with WORD."""
    lines = (line.split() for line in open(name))
    return {w[1]: w[2] for w in lines
            if len(w) >= 3 and w[0] == word and len(w[2]) == 64}

want, got = sums(sys.argv[1], "DURABLE"), sums(sys.argv[2], "SUM")
for name, sum_ in want.items():
    assert got.get(name) == sum_, (name, sum_, got.get(name))
print(len(want), "files are there")
PY

# look_outside: the disk of a server that was killed.
look_outside ()
{
    rm -rf out
    mkdir out
    start_nbdkit sock -r --filter="$addcow" file addcow=vm.add-cow
    nbdcopy "$uri" disk
    stop_nbdkit "$pid"
    # The journal is replayed; what is no matter of course would be 4.
    e2fsck -p disk || [ $? -eq 1 ]
    e2fsck -f -n disk
    debugfs -R "rdump / out" disk
    (cd out && find . -type f -printf '%P\n' | while IFS= read -r f; do
        echo "SUM $f $(sha256sum < "$f" | cut -d' ' -f1)"
    done) > sums
    /usr/bin/python3 told.py told sums
}

large=$(sha256sum < files/large.file)
echo "DURABLE large.file ${large%% *}" > told
for ((boot = 0; boot < kills; boot++)); do
    most=$((RANDOM % 40 + 3))
    start
    rm -f console
    mkfifo console
    (boot $boot) > console &
    guest_pid=$!
    cleanup_fn "kill -TERM $guest_pid 2>/dev/null || :"
    count=0
    : > log
    while IFS= read -r line; do
        echo "${line%$'\r'}" >> log
        case $line in
            DURABLE\ *) count=$((count + 1)) ;;
        esac
        if [ $count -eq $most ]; then break; fi
    done < console
    stop_nbdkit "$pid" KILL
    kill -TERM $guest_pid 2>/dev/null || :
    wait $guest_pid || :
    tail -n 50 log
    [ $count -eq $most ]
    # As the boot found it.
    grep -x "BOOT $boot" log
    /usr/bin/python3 told.py told log
    cat log >> told
    look_outside
done

start
(boot 1000) | tr -d '\r' > log
stop_nbdkit "$pid"
cat log
grep -x UNMOUNTED log
/usr/bin/python3 told.py told log
look_outside
cmp base.img base.copy
nr=$(grep -c '^DURABLE' told)
echo "$kills kills, $nr files told of, seed $ADDCOW_SEED: nothing lost"
