#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Completion in bash: verbs, options and files of addcow-img, parameters of
# the filter, and what nbdkit's own completion says.  The lines are typed into
# an interactive bash, which reads them from a pipe.

source ./functions.sh
set -e
set -x

bash_completion=/usr/share/bash-completion/bash_completion
requires test -f $bash_completion
requires test -f /usr/share/bash-completion/completions/nbdkit
requires type setsid

mkdir "$tmp/bin" "$tmp/compat" "$tmp/none" "$tmp/home" "$tmp/t"
cp "$abs_top_srcdir/completions/nbdkit-addcow-filter" "$tmp/compat"
# nbdkit that has the filter.
{
    echo '#!/usr/bin/env bash'
    echo 'set -- "${@/#--filter=addcow/--filter=$addcow}"'
    echo "exec env ${_preload:+LD_PRELOAD='$_preload'} $(type -P nbdkit)" '"$@"'
} > "$tmp/bin/nbdkit"
chmod +x "$tmp/bin/nbdkit"
ln -s "$abs_top_builddir/img/addcow-img" "$tmp/bin"

cd "$tmp/t"
mkdir sub 'my dir'
touch base.img 'my base.img' co,mma.img vm.add-cow 'my vm.add-cow' \
      a:b.add-cow e=f.add-cow sub/x.add-cow 'my dir/y.add-cow'

# As insert-completions has them.
overlays='a\:b.add-cow e\=f.add-cow my\ dir my\ vm.add-cow sub vm.add-cow'
files='a\:b.add-cow base.img co,mma.img e\=f.add-cow my\ base.img my\ dir'
files+=' my\ vm.add-cow sub vm.add-cow'
formats='add-cow bochs cloop dmg luks parallels qcow qcow2 qed raw vdi vhdx'
formats+=' vmdk vpc'

#--- A shell that lines are typed into.

# start_shell [-c COMPATDIR] [COMMAND]: which bash reads first.
start_shell ()
{
    local compat=$tmp/compat
    stop_shell
    [ "$1" != -c ] || { compat=$2; shift 2; }
    cat > "$tmp/rc" <<EOF
source $bash_completion
PS1=
take ()
{
    printf '%s\n' "\$READLINE_LINE" >&9
    READLINE_LINE='' READLINE_POINT=0
}
bind -x '"\C-xd": take'
bind '"\C-xi": insert-completions'
$1
EOF
    rm -f "$tmp/typed" "$tmp/taken"
    mkfifo "$tmp/typed" "$tmp/taken"
    # Without the terminal, if there is one.
    env HOME="$tmp/home" INPUTRC=/dev/null TERM=dumb \
        PATH="$tmp/bin:$PATH" XDG_DATA_DIRS="$tmp/none" \
        BASH_COMPLETION_USER_DIR="$abs_top_srcdir" \
        BASH_COMPLETION_COMPAT_DIR="$compat" \
        setsid bash --rcfile "$tmp/rc" -i \
        <"$tmp/typed" >/dev/null 2>"$tmp/shell.err" 9>"$tmp/taken" &
    shell=$!
    exec {to_shell}>"$tmp/typed" {from_shell}<"$tmp/taken"
}

# The end of what is typed is the end of the shell, which has had nothing to
# complain of.
stop_shell ()
{
    [ -n "$shell" ] || return 0
    exec {to_shell}>&- {from_shell}<&-
    wait "$shell"
    shell=
    grep -a -v -e 'cannot set terminal process group' \
         -e 'no job control in this shell' "$tmp/shell.err" |
        grep -a -e 'bash: ' -e 'bash_completion: ' || return 0
    return 1
}

# type_keys TEXT: type it; the line that there is then is in $line.
type_keys ()
{
    printf '%s\x18d' "$1" >&"$to_shell"
    IFS= read -r -t 60 line <&"$from_shell"
}

# tab LINE EXPECTED: what LINE and the tabulator make.
tab ()
{
    type_keys "$1"$'\t'
    [ "$line" = "$2" ]
}

# all LINE EXPECTED: what LINE is with all that it can be completed to.
all ()
{
    type_keys "$1"$'\x18i'
    [ "$line" = "$2" ]
}

# nothing LINE: there is nothing that completes it.
nothing ()
{
    all "$1" "$1"
}

#--- Verbs, and options of each.

# Of the lines of options in a help text.
help_options ()
{
    grep '^ *-' | sed 's/^ *//; s/   *.*//; s/, -/\n-/g'
}

joined ()
{
    sort | tr '\n' ' '
}

# check_value LINE NAME: LINE ends before a value that is called so in the
# help text.
check_value ()
{
    case $2 in
        BACKING | IMAGE) all "$1" "$1$files " ;;
        FMT) all "$1" "$1$formats " ;;
        KEY=VALUE,...) all "$1" "$1$(joined < "$tmp/keys")" ;;
        SIZE) nothing "$1" ;;
        human\|json) all "$1" "$1human json " ;;
        *) echo "no test for values $2: $1"; exit 1 ;;
    esac
}

start_shell
verbs=$(sed -n 's/^ *"\([a-z]*\)", img_[a-z]*,.*/\1/p' \
            "$abs_top_srcdir/img/main.c" | joined)
[ -n "$verbs" ]
all 'addcow-img ' "addcow-img $verbs"
all 'addcow-img -' 'addcow-img --help --version -V -h '
tab 'addcow-img cr' 'addcow-img create '
tab "$tmp/bin/addcow-img cr" "$tmp/bin/addcow-img create "
tab '../bin/addcow-img cr' '../bin/addcow-img create '
nothing 'addcow-img nonsense '
nothing 'addcow-img nonsense -'
nothing 'addcow-img --help '

for verb in $verbs; do
    addcow-img "$verb" --help > "$tmp/help"
    help_options < "$tmp/help" > "$tmp/options"
    [ -s "$tmp/options" ]
    expected=$(sed 's/^\(--[^=]*=\).*/\1/; s/^\(-[^-]\) .*/\1/' \
                   "$tmp/options" | joined)
    all "addcow-img $verb -" "addcow-img $verb $expected"
    all "addcow-img $verb vm.add-cow -" "addcow-img $verb vm.add-cow $expected"
    nothing "addcow-img $verb -- -"

    grep -o ' [a-z_]*=' "$tmp/help" | tr -d ' ' > "$tmp/keys" || :
    while IFS= read -r option; do
        case $option in
            --*=*)
                check_value "addcow-img $verb ${option%%=*}=" "${option#*=}"
                check_value "addcow-img $verb ${option%%=*} " "${option#*=}"
                # Its value is not FILE.
                all "addcow-img $verb ${option%%=*} 1 " \
                    "addcow-img $verb ${option%%=*} 1 $overlays " ;;
            -?\ *)
                check_value "addcow-img $verb ${option%% *} " "${option#* }"
                all "addcow-img $verb ${option%% *} 1 " \
                    "addcow-img $verb ${option%% *} 1 $overlays " ;;
            *)
                # Neither is what comes behind one without.
                all "addcow-img $verb $option " \
                    "addcow-img $verb $option $overlays " ;;
        esac
    done < "$tmp/options"

    # FILE, which is there once.
    all "addcow-img $verb " "addcow-img $verb $overlays "
    all "addcow-img $verb -- " "addcow-img $verb -- $overlays "
    nothing "addcow-img $verb vm.add-cow "
    nothing "addcow-img $verb -- vm.add-cow "
    nothing "addcow-img $verb base"
done

# All formats that lib/ knows by name.
grep -ho 'MAGIC ("[^"]*"\|{ "[a-z0-9]*", \(true\|false\) }' \
     "$abs_top_srcdir/lib/backing.c" "$abs_top_srcdir/lib/backing-qemu.c" |
    sed 's/[^"]*"\([^"]*\)".*/\1/' | sort -u > "$tmp/known-formats"
[ -s "$tmp/known-formats" ]
tr ' ' '\n' <<< "$formats" | sort | comm -13 - "$tmp/known-formats" \
    > "$tmp/forgotten-formats"
[ ! -s "$tmp/forgotten-formats" ]

# Options together, abbreviated, with a value.
tab 'addcow-img create -qb b' 'addcow-img create -qb base.img '
tab 'addcow-img create -fqF qcow2 v' 'addcow-img create -fqF qcow2 vm.add-cow '
tab 'addcow-img create -bx v' 'addcow-img create -bx vm.add-cow '
nothing 'addcow-img create -bx base'
tab 'addcow-img info --out j' 'addcow-img info --out json '
tab 'addcow-img info --out=j' 'addcow-img info --out=json '
tab 'addcow-img info --output="j' 'addcow-img info --output="json" '
tab 'addcow-img info --o' 'addcow-img info --output='
nothing 'addcow-img info --output=x'
nothing 'addcow-img info --watch='

#--- Names.

tab 'addcow-img info v' 'addcow-img info vm.add-cow '
tab 'addcow-img info s' 'addcow-img info sub/'
tab 'addcow-img info sub/' 'addcow-img info sub/x.add-cow '
nothing 'addcow-img info my\ dir/z'
tab 'addcow-img info my' 'addcow-img info my\ '
tab 'addcow-img info my\ v' 'addcow-img info my\ vm.add-cow '
tab 'addcow-img info "my v' 'addcow-img info "my vm.add-cow" '
tab "addcow-img info 'my v" "addcow-img info 'my vm.add-cow' "
tab 'addcow-img info my\ dir/' 'addcow-img info my\ dir/y.add-cow '
tab 'addcow-img create -b my\ b' 'addcow-img create -b my\ base.img '
tab 'addcow-img create --backing=my\ b' \
    'addcow-img create --backing=my\ base.img '
tab 'addcow-img create --backing="my b' \
    'addcow-img create --backing="my base.img" '
tab 'addcow-img info a' 'addcow-img info a\:b.add-cow '
tab 'addcow-img info a\:' 'addcow-img info a\:b.add-cow '
tab 'addcow-img info a:' 'addcow-img info a:b.add-cow '
tab 'addcow-img info "a:' 'addcow-img info "a:b.add-cow" '
tab 'addcow-img info e=' 'addcow-img info e=f.add-cow '
tab 'addcow-img info e\=' 'addcow-img info e\=f.add-cow '
tab 'addcow-img create --backing=a:' \
    'addcow-img create --backing=a:b.add-cow '
touch 'p q:r.add-cow'
tab 'addcow-img info p\ q:' 'addcow-img info p\ q:r.add-cow '
rm 'p q:r.add-cow'

# -o.  A comma in a name is two.
c='addcow-img create -o'
tab "$c s" "$c size="
tab "$c size=1G,i" "$c size=1G,image_file="
nothing "$c size=1G,s"
nothing "$c size="
tab "$c backing_file=b" "$c backing_file=base.img"
tab "$c size=1G,backing_file=b" "$c size=1G,backing_file=base.img"
all "$c size=1G,backing_fmt=v" "$c size=1G,backing_fmt=vdi vhdx vmdk vpc "
tab "$c backing_file=c" "$c backing_file=co,,mma.img"
tab "$c backing_file=co,,m" "$c backing_file=co,,mma.img"
tab "$c backing_file=a,,i" "$c backing_file=a,,i"
tab "$c backing_file=a,,b,i" "$c backing_file=a,,b,image_file="
tab "$c backing_file=my\\ b" "$c backing_file=my\\ base.img"
tab "$c backing_file=my\\ b,i" "$c backing_file=my\\ b,image_file="
tab "$c \"size=1,backing_file=my b" "$c \"size=1,backing_file=my base.img\""
tab "$c 'size=1,backing_file=my b" "$c 'size=1,backing_file=my base.img'"
tab "$c \"size=1G,im" "$c \"size=1G,image_file=\""
tab 'addcow-img create --options=size=1G,i' \
    'addcow-img create --options=size=1G,image_file='
nothing 'addcow-img create --options=size=1G,s'

# No file there.
cd sub
rm x.add-cow
start_shell
nothing 'addcow-img info '
nothing 'addcow-img create -b '
nothing 'nbdkit --filter=addcow file addcow='
cd ..

# It is the program on the line that is asked.
mkdir "$tmp/other"
cat > "$tmp/other/addcow-img" <<'EOF'
#!/bin/sh
case "$*" in
  --help) printf 'Verbs:\n  frob     do it\n' ;;
  'frob --help')
      echo '  -x IMAGE, --xyzzy=IMAGE  it'
      echo '      --way=to|fro         it' ;;
esac
EOF
chmod +x "$tmp/other/addcow-img"
start_shell
# With a path it would be loaded only for the second line, before
# bash-completion 2.12.
tab 'addcow-img info v' 'addcow-img info vm.add-cow '
tab "$tmp/other/addcow-img " "$tmp/other/addcow-img frob "
all "$tmp/other/addcow-img frob -" \
    "$tmp/other/addcow-img frob --way= --xyzzy= -x "
all "$tmp/other/addcow-img frob --way=" \
    "$tmp/other/addcow-img frob --way=fro to "
all "$tmp/other/addcow-img frob -x " "$tmp/other/addcow-img frob -x $files "
nothing "/nowhere/addcow-img "

#--- The filter.

n='nbdkit --filter=addcow file'
values=(
    "addcow= $overlays"
    "addcow-backing= ${files/ sub/ none sub}"
    "addcow-backing-format= $formats"
    "addcow-backing-timeout="
    "addcow-cache-size="
    "addcow-commit-interval="
    "addcow-confine= my\\ dir none sub"
    "addcow-hydrate= false true"
    "addcow-hydrate-rate="
    "addcow-on-cache= false true"
    "addcow-on-read= false true"
)
grep -ho 'strcmp (key, "[^"]*")' "$abs_top_srcdir"/filters/addcow/*.c |
    sed 's/.*"\(.*\)".*/\1=/' | grep -vx -e file= -e 'dir.*' |
    sort -u > "$tmp/parameters"
printf '%s\n' "${values[@]%% *}" | sort | diff - "$tmp/parameters"

# The first line with nbdkit has them.
start_shell
all "$n addcow" "$n $(joined < "$tmp/parameters")"
for value in "${values[@]}"; do
    parameter=${value%%=*}=
    value=${value#"$parameter"}
    if [ -n "$value" ]; then
        all "$n $parameter" "$n $parameter${value# } "
    else
        nothing "$n $parameter"
    fi
done
tab "$n addcow=v" "$n addcow=vm.add-cow "
tab "$n addcow=my\\ v" "$n addcow=my\\ vm.add-cow "
tab "$n addcow=\"my v" "$n addcow=\"my vm.add-cow\" "
tab "$n \"addcow=my v" "$n \"addcow=my vm.add-cow\" "
tab "$n addcow=my\\ dir/" "$n addcow=my\\ dir/y.add-cow "
tab "$n addcow=a:" "$n addcow=a:b.add-cow "
nothing "$n addcow=base"
tab "$n addcow-on-c" "$n addcow-on-cache="
tab "$n addcow-on-read=t" "$n addcow-on-read=true "
tab "$n addcow-on-read=$tmp/t/s" "$n addcow-on-read=$tmp/t/sub/"
nothing "$n addcow-on-cache=/"
tab "$n addcow=vm.add-cow addcow-con" "$n addcow=vm.add-cow addcow-confine="
tab 'nbdkit --filter addcow file addcow-con' \
    'nbdkit --filter addcow file addcow-confine='
tab 'nbdkit -U - -f --filter=log --filter=addcow null addcow=v' \
    'nbdkit -U - -f --filter=log --filter=addcow null addcow=vm.add-cow '
tab "nbdkit --filter=$addcow file addcow-con" \
    "nbdkit --filter=$addcow file addcow-confine="
# By readline itself, as without the filter.
tab "$n nonsense=v" "$n nonsense=vm.add-cow "
tab "$n =v" "$n =vm.add-cow "
# Only where they can be.
nothing 'nbdkit file addcow-'
nothing 'nbdkit --filter=cow file addcow-'
nothing 'nbdkit --filter=addcow addcow-'
nothing 'nbdkit --filter=addcow -U addcow-'
nothing 'nbdkit --filter=addcow file -U addcow-'
type_keys $'nbdkit --filter=addcow file \x18i'
[[ $line == *' addcow= '*' dir= '* ]]

# nbdkit's own completion says what it says without ours.
own=(
    'nbdkit '
    'nbdkit -'
    'nbdkit --t'
    'nbdkit --tls='
    'nbdkit --filter '
    'nbdkit --filter=l'
    'nbdkit mem'
    'nbdkit file '
    'nbdkit file ca'
    'nbdkit file b'
    'nbdkit file file=b'
    'nbdkit --filter=addcow '
    'nbdkit --filter=addcow -'
    'nbdkit --filter=addcow --tls '
    'nbdkit --filter=addcow --filter=l'
    'nbdkit --filter=addcow mem'
    'nbdkit --filter=addcow file file=b'
    'nbdkit --filter=addcow file ca'
)
start_shell -c "$tmp/none"
for typed in "${own[@]}"; do
    type_keys "$typed"$'\x18i'
    [ "$line" != "$typed" ]
    printf '%s\n' "$line"
done > "$tmp/own"
nothing "$n addcow-"
start_shell
for typed in "${own[@]}"; do
    type_keys "$typed"$'\x18i'
    printf '%s\n' "$line"
done | diff "$tmp/own" -

# Behind another command, and first there.
for command in sudo nohup; do
    start_shell
    tab "$command $n addcow-con" "$command $n addcow-confine="
    tab "$command addcow-img info v" "$command addcow-img info vm.add-cow "
done

# instead_of_own COMMAND: for start_shell, COMMAND where nbdkit's own is loaded.
instead_of_own ()
{
    cat <<EOF
load=\$(declare -F _comp_load || echo __load_completion)
eval "other\$(declare -f \$load)"
nbdkits () { if [ "\$1" = nbdkit ]; then $1; else other\$load "\$@"; fi; }
eval "\$load () { nbdkits \"\\\$@\"; }"
EOF
}

# Without nbdkit's own there are the parameters at least, and files.
start_shell "$(instead_of_own false)"
tab "$n addcow=v" "$n addcow=vm.add-cow "
tab "$n addcow-con" "$n addcow-confine="
tab "$n b" "$n base.img "

# Somebody's own that is no function stays.
start_shell "$(instead_of_own "complete -W 'one two' nbdkit")"
all 'nbdkit ' 'nbdkit one two '
all 'nbdkit ' 'nbdkit one two '

#--- Other characters that break words.

start_shell 'COMP_WORDBREAKS=${COMP_WORDBREAKS//[=:]} ; set -u'
tab 'addcow-img info --output=j' 'addcow-img info --output=json '
all 'addcow-img info --output=' \
    'addcow-img info --output=human --output=json '
tab 'addcow-img info --output j' 'addcow-img info --output json '
tab 'addcow-img info a:' 'addcow-img info a:b.add-cow '
tab 'addcow-img create --backing=b' 'addcow-img create --backing=base.img '
tab "$c size=1G,i" "$c size=1G,image_file="
tab "$c size=1G,backing_fmt=r" "$c size=1G,backing_fmt=raw"
tab "$n addcow=v" "$n addcow=vm.add-cow "
tab "$n addcow-on-read=t" "$n addcow-on-read=true "

stop_shell
