# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash disable=SC2154 # bad-input.sh comes before
#
# What the tests of addcow-img check share, after bad-input.sh: an overlay,
# what becomes of it, and what is to be found.

size=$((1001 * 512))
full=$((2068 + 126)) # bytes of its metadata file
random_file base.img $size
truncate -s $size vm.raw

# new [backing=NAME] [image=NAME]: vm.add-cow with some bits.
new ()
{
    metadata vm.add-cow size=$size backing=base.img image=vm.raw "$@"
    at 2070 '\x55\xff'
}

# at OFFSET BYTES [FILE]
at ()
{
    # shellcheck disable=SC2059 # they are bytes
    printf "$2" | dd of="${3:-vm.add-cow}" bs=1 seek="$1" conv=notrunc \
        status=none
}

# hints STRINGS: behind the name of the backing file.
hints ()
{
    at $((12 + 8 + 1)) "$1"
}

# border BEFORE STRINGS GOOD: vm.add-cow, and good, with hints that begin BEFORE
# bytes before the border of two sectors of the file.
border ()
{
    local before=$1 name
    name=./$(printf "%0$((500 - before - 1 - 10))d" 0 | tr 0 /)base.img
    [ ${#name} -eq $((500 - before - 1)) ]
    new backing="$name"
    cp vm.add-cow good
    at $((512 - before)) "$2"
    at $((512 - before)) "$3" good
}

# The keywords in the JSON on stdin, with "(fixed)" behind one that is; it
# must agree with itself, and with the file of the lines for people, and its
# name FILE.
cat > "$tmp/keywords.py" <<'PY'
import json, sys

name, out = sys.argv[1:3]
human, quiet = (sys.argv[3:] + [None, None])[:2]
top = json.load(sys.stdin)
assert top.pop("filename") == name
assert top.pop("format") == "add-cow"
assert top.pop("check-errors") == 0
problems = top.pop("problems")
counts = {}
lines = []
for p in problems:
    assert set(p) == {"what", "severity", "fixed", "text"}, p
    key = {"corruption": "corruptions", "leak": "leaks"}[p["severity"]]
    word = {"corruption": "ERROR", "leak": "WARNING"}[p["severity"]]
    if p["fixed"]:
        key += "-fixed"
        word += " (repaired)"
    counts[key] = counts.get(key, 0) + 1
    lines.append("%s: %s\n" % (word, p["text"]))
assert top == counts, (top, counts)

corruptions, leaks = counts.get("corruptions", 0), counts.get("leaks", 0)
fixed = counts.get("leaks-fixed", 0), counts.get("corruptions-fixed", 0)
summary = ""
if fixed != (0, 0):
    summary += """
The following inconsistencies were found and repaired:

    %d warnings
    %d corruptions

""" % fixed
if not corruptions and not leaks:
    summary += "No errors were found on the image.\n"
if corruptions:
    summary += """
%d errors were found on the image.
It cannot be used, or some of its data is lost.
""" % corruptions
if leaks:
    summary += """
%d warnings were found on the image.
The metadata and the image file are sound.
""" % leaks
for file, end in (human, summary), (quiet, ""):
    if file:
        with open(file) as f:
            assert f.read() == "".join(lines) + end, (file, lines, end)
with open(out, "w") as f:
    f.writelines(lines)
print(*(p["what"] + ("(fixed)" if p["fixed"] else "") for p in problems))
PY

# run_check STATUS OUTPUT ARGUMENT...: addcow-img check must end so, with
# nothing on stderr; stdout to the file OUTPUT in $tmp.
run_check ()
{
    local want=$1 output=$2 status=0
    shift 2
    addcow-img check "$@" > "$tmp/$output" 2> "$tmp/stderr" || status=$?
    cat "$tmp/$output" "$tmp/stderr"
    [ $status -eq "$want" ] && [ ! -s "$tmp/stderr" ]
}

# keywords FILE [HUMAN QUIET]: of $tmp/json; the lines go to $tmp/lines.
keywords ()
{
    /usr/bin/python3 "$tmp/keywords.py" "$1" "$tmp/lines" "${@:2}" \
        < "$tmp/json"
}

# For people too, unless that takes too long.
found_human ()
{
    [ -z "$ADDCOW_VALGRIND" ] || return 0
    human=("$tmp/human" "$tmp/quiet")
    run_check "$1" human "$2" && run_check "$1" quiet -q --output=human "$2"
}

# found STATUS FILE [KEYWORD...]: check finds just these in FILE, in this
# order, and changes nothing.
found ()
{
    local want=$1 file=$2 got human=()
    shift 2
    keep &&
        run_check "$want" json --output=json "$file" &&
        found_human "$want" "$file" &&
        got=$(keywords "$file" "${human[@]}") &&
        echo "$got" && [ "$got" = "$*" ] &&
        kept
}

# says TEXT: that is in the last lines that were found or mended.
says ()
{
    grep -F -- "$1" "$tmp/lines"
}

mended_human ()
{
    [ -z "$ADDCOW_VALGRIND" ] || return 0
    human=("$tmp/human")
    mv "$2" "$tmp/mended" && mv "$tmp/copy" "$2" &&
        run_check "$1" human -r "$2" && cmp "$tmp/mended" "$2"
}

# mended STATUS FILE [KEYWORD...]: check -r finds these, "KEYWORD(fixed)" for
# what it mends; for people it says the same on a copy of FILE.
mended ()
{
    local want=$1 file=$2 got human=()
    shift 2
    cp -p --sparse=always "$file" "$tmp/copy" &&
        run_check "$want" json --repair --output=json "$file" &&
        mended_human "$want" "$file" &&
        got=$(keywords "$file" "${human[@]}") &&
        echo "$got" && [ "$got" = "$*" ]
}
