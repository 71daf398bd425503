# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# What the tests of addcow-img commit share, after functions.sh, bad-input.sh,
# nbd-backing.sh and stream.sh.  The overlay is vm.add-cow, its image vm.raw,
# its backing file base.img where it is raw, and "disk" is what the disk must
# be.

# fresh OPTION... [SIZE]: a new overlay.
fresh ()
{
    rm -f vm.*
    addcow-img create -q "${@:1:$#-1}" vm.add-cow "${@: -1}"
}

# padded FILE SIZE: "disk" becomes FILE, cut or with zeroes to SIZE.
padded ()
{
    cp "$1" disk
    truncate -s "$2" disk
}

# filled SEED [KIND...]: something is allocated, in "disk" too; which sectors
# is in the file sectors.
filled ()
{
    python - "$@" <<'PY'
import sys
from overlay_files import *
disk = bytearray(read("disk"))
kinds = sys.argv[2:] or ["data", "data", "zeroes", "hole"]
sectors = fill("vm.add-cow", disk, int(sys.argv[1]), kinds)
write("disk", disk)
write("sectors", repr(sectors).encode())
PY
    [ "$(nr_allocated)" -gt 0 ]
}

# empty: nothing is allocated any more, and the image takes no space, but for
# a block that it ends in.
empty ()
{
    [ "$(nr_allocated)" -eq 0 ]
    [ "$(stat -c %b vm.raw)" -eq 0 ] ||
        [ $(($(stat -c %s vm.raw) % 4096)) -gt 0 ]
}

# commit: do it; the overlay is empty and what it was.
commit ()
{
    addcow-img commit vm.add-cow >out 2>err || { cat out err; return 1; }
    cat out err
    echo "Image committed." | cmp - out
    [ ! -s err ]
    empty
    # What that takes long for is tested elsewhere.
    [ -n "$ADDCOW_VALGRIND" ] || served
}
