#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Parameters, verbs and options are the same in the source, in the --help
# texts and in the man pages; help texts are as they should be; the man
# pages have no syntax errors.

source ./functions.sh
set -e
set -x

# Not into what is read from a command's stderr.
[ -n "$BASH_XTRACEFD" ] || exec {BASH_XTRACEFD}>&2

requires type podchecker
requires_plugin null

docs=$abs_top_srcdir/docs
failed=0

fail ()
{
    echo "$test_name: $*"
    failed=1
}

# sorted NAME: stdin to $tmp/NAME, sorted, without repeated lines.
sorted ()
{
    sort -u > "$tmp/$1"
}

# same WHAT FILE...: the lists, files in $tmp, must be equal, and not empty.
same ()
{
    local what=$1 first=$2 other
    shift
    for other; do
        [ -s "$tmp/$other" ] || fail "$what: the list $other is empty"
        diff -u "$tmp/$first" "$tmp/$other" || fail "$what differ"
    done
}

# pod_section POD HEADING: what is under =head1 or =head2 HEADING, up to
# the next heading of that level or above.
pod_section ()
{
    awk -v heading="$2" '
        /^=head[12] / {
            l = substr ($1, 6)
            if (inside && l <= level) inside = 0
            if (substr ($0, 8) == heading) { inside = 1; level = l; next }
        }
        inside' "$docs/$1"
}

# check_help FILE: the help text in $tmp/FILE has lines of at most 80
# columns.
check_help ()
{
    [ -s "$tmp/$1" ] || fail "help text $1: nothing on stdout"
    awk 'length ($0) > 80 { print; bad = 1 } END { exit bad }' "$tmp/$1" ||
        fail "help text $1: a line of more than 80 columns"
}

#--- The man pages themselves.

for pod in addcow.pod addcow-img.pod nbdkit-addcow-filter.pod; do
    podchecker -warnings "$docs/$pod" >"$tmp/podchecker" 2>&1 ||
        fail "podchecker: $pod"
    cat "$tmp/podchecker"
    ! grep -q WARNING "$tmp/podchecker" || fail "podchecker: $pod"
done
for pod in "$docs"/*.pod; do
    grep -qF "${pod##*/}" "$docs/Makefile.am" ||
        fail "${pod##*/} is not in docs/Makefile.am"
done

#--- Parameters of the filter.

# In the source; file= and those of folders are the plugin's.
grep -ho 'strcmp (key, "[^"]*")' "$abs_top_srcdir"/filters/addcow/*.c |
    sed 's/.*"\(.*\)".*/\1/' | grep -vx -e file -e 'dir.*' |
    sorted filter-source

# In the filter's part of --help; the line with its path does not count.
nbdkit --filter="$addcow" null --help >"$tmp/out" 2>"$tmp/err" ||
    fail "nbdkit --help failed"
[ ! -s "$tmp/err" ] || { cat "$tmp/err"; fail "--help wrote to stderr"; }
sed -n '/^filter: addcow/,/^plugin: /p' "$tmp/out" |
    grep -v -e '^(' -e '^plugin: ' > "$tmp/filter-help-text"
check_help filter-help-text
sed -n 's/^\[\{0,1\}\([a-z][a-z-]*\)=.*/\1/p' "$tmp/filter-help-text" |
    sorted filter-help

# In the man page: PARAMETERS, and SYNOPSIS.
page=nbdkit-addcow-filter.pod
pod_section $page PARAMETERS | sed -n '/^=item/{
    s/^=item B<\([a-z-]*\)=.*/\1/
    p
}' | sorted filter-pod
pod_section $page SYNOPSIS | grep -o '\baddcow[a-z-]*=' | tr -d = |
    sorted filter-synopsis

same "parameters of the filter" \
     filter-source filter-help filter-pod filter-synopsis

#--- Verbs of addcow-img.

img=$abs_top_srcdir/img
page=addcow-img.pod

# run_help FILE ARGUMENT...: addcow-img with the arguments, which end with
# --help, to $tmp/FILE.
run_help ()
{
    local file=$1
    shift
    addcow-img "$@" >"$tmp/$file" 2>"$tmp/err" ||
        fail "addcow-img $*: exit status is not 0"
    [ ! -s "$tmp/err" ] ||
        { cat "$tmp/err"; fail "addcow-img $* wrote to stderr"; }
    check_help "$file"
}

run_help img-help-text --help
sed -n 's/^ *"\([a-z]*\)", img_[a-z]*,.*/\1/p' "$img/main.c" |
    sorted verbs-source
sed -n '/^Verbs:/,/^$/s/^  \([a-z]*\) .*/\1/p' "$tmp/img-help-text" |
    sorted verbs-help
pod_section $page VERBS | sed -n 's/^=head2 //p' | sorted verbs-pod
same "verbs of addcow-img" verbs-source verbs-help verbs-pod

# Options before a verb.  Short ones are not in --help.
grep -o 'strcmp (argv\[1\], "-[^"]*")' "$img/main.c" |
    sed 's/.*"\(.*\)".*/\1/' | sorted options-source
pod_section $page OPTIONS | sed -n 's/^=item B<\([^>]*\)>.*/\1/p' |
    sorted options-pod
same "options of addcow-img" options-source options-pod
grep '^--' "$tmp/options-source" | sorted long-options-source
grep '^addcow-img -' "$tmp/img-help-text" | grep -o -e '--[a-z-]*' |
    sorted long-options-help
same "long options of addcow-img" long-options-source long-options-help

# Exit statuses: those of stdlib.h, and others.
{
    printf '%s\n' 0 1
    sed -n 's/^#define EXIT_[A-Z_]* \([0-9]*\)$/\1/p' "$img"/*.c
} | sorted statuses-source
pod_section $page "EXIT STATUS" | grep '^=item' | grep -o '[0-9]*' |
    sorted statuses-pod
same "exit statuses of addcow-img" statuses-source statuses-pod

#--- Options of each verb.  One with a value has a "=" at its end here.

# Of the table and of the string for getopt_long.
source_options ()
{
    sed -n '/struct option .*\[\] = {/,/NULL }/p' "$1" |
        sed -n -e 's/.*{ "\([^"]*\)", no_argument.*/--\1/p' \
               -e 's/.*{ "\([^"]*\)", required_argument.*/--\1=/p'
    tr '\n' ' ' < "$1" |
        grep -o 'getopt_long (argc, argv, *":[^"]*"' |
        sed 's/.*":\(.*\)"/\1/' | grep -o '[^:]:\{0,1\}' |
        sed 's/^/-/; s/:/=/'
}

# Of the lines of options in a help text: "  -x VALUE, --long=VALUE  text".
help_options ()
{
    grep '^ *-' | sed 's/^ *//; s/   *.*//; s/, /\n/g' |
        sed -n 's/^\(-[a-zA-Z]\) .*/\1=/; s/^\(--[a-z-]*=\).*/\1/; /^-/p'
}

# Of =item B<-x> VALUE and =item B<--long=>VALUE.
pod_options ()
{
    sed -n '/^=item B<-/{
        s/^=item B<\(-[a-zA-Z]\)> .*/\1=/
        s/^=item B<\(--[a-z-]*=\).*/\1/
        s/^=item B<\(-[^>]*\)>.*/\1/
        p
    }'
}

while read -r verb; do
    [ -f "$img/$verb.c" ] || { fail "no img/$verb.c"; continue; }
    run_help "help-$verb" "$verb" --help
    pod_section $page "$verb" > "$tmp/pod-$verb"

    source_options "$img/$verb.c" | sorted source
    help_options < "$tmp/help-$verb" | sorted help
    pod_options < "$tmp/pod-$verb" | sorted pod
    same "options of $verb" source help pod

    # How it is used: the lines of the help text up to the first empty
    # one, in SYNOPSIS and with the description of the verb.
    pod_section $page SYNOPSIS > "$tmp/synopsis"
    sed '/^$/,$d; s/^/ /' "$tmp/help-$verb" > "$tmp/usage"
    [ -s "$tmp/usage" ] || fail "$verb: no usage in --help"
    while IFS= read -r line; do
        grep -qxF -- "$line" "$tmp/synopsis" ||
            fail "$verb: usage is not in SYNOPSIS: $line"
        grep -qxF -- "$line" "$tmp/pod-$verb" ||
            fail "$verb: usage is not in its description: $line"
    done < "$tmp/usage"

    # Keys of -o.
    if grep -qx -e '-o=' "$tmp/source"; then
        grep -o 'strcmp (key, "[^"]*")' "$img/$verb.c" |
            sed 's/.*"\(.*\)".*/\1/' | sorted keys-source
        grep -o ' [a-z_]*=' "$tmp/help-$verb" | tr -d ' =' |
            sorted keys-help
        sed -n 's/^=item B<\([a-z_]*\)=>.*/\1/p' "$tmp/pod-$verb" |
            sorted keys-pod
        same "keys of -o of $verb" keys-source keys-help keys-pod
    fi

    # Fields of the JSON output.
    if grep -q json_object "$img/$verb.c"; then
        tr '\n' ' ' < "$img/$verb.c" |
            grep -oE '(add_[a-z0-9]+|object_add) \([a-z]+, *"[^"]*"' |
            sed 's/.*"\(.*\)"/\1/' | sorted fields-source
        sed -n 's/^=item C<\([^>]*\)>.*/\1/p' "$tmp/pod-$verb" |
            sorted fields-pod
        same "JSON fields of $verb" fields-source fields-pod
    fi
done < "$tmp/verbs-source"

exit $failed
