# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # functions.sh comes before
#
# The filter with a fault in it, to see that a test finds such a one.  After
# functions.sh, in $tmp; not in builds with a sanitizer.

# How often in FILE the text OLD is, which is to be NEW; once, or this fails.
cat > mutate.py <<'PY'
import sys

source, old, new, to = sys.argv[1:]
with open(source) as f:
    text = f.read()
if text.count(old) != 1:
    sys.exit("%s: this is there %d times, and not once:\n%s"
             % (source, text.count(old), old))
with open(to, "w") as f:
    f.write(text.replace(old, new))
PY

# build_mutant NAME FILE OLD NEW: the filter, as $tmp/NAME.so, with NEW in place
# of the text OLD in lib/FILE.
build_mutant ()
{
    local libs
    libs=$(pkg-config --libs libnbd json-c)
    /usr/bin/python3 mutate.py "$abs_top_srcdir/lib/$2" "$3" "$4" "$1.c"
    # shellcheck disable=SC2086 # words
    "${CC:-gcc}" -O2 -fPIC -pthread -shared -o "$1.so" \
        -I"$abs_top_builddir" -I"$abs_top_srcdir/lib" "$1.c" \
        "$abs_top_builddir"/filters/addcow/.libs/*.o \
        "$abs_top_builddir/lib/.libs/libaddcow.a" $libs
}
