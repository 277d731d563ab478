r"""Command lines, with the programs that they run; a question mark before them: opaque. \n stands for a line's end."""

from __future__ import annotations

from typing import Final

LINES: Final = r"""
ls :: ls
ls :: ls -l
ls :: /bin/ls -la /srv
ls :: "ls" '-l'
ls :: 'l's
ls :: l\s
ls ::   ls
ls :: ls;
ls :: ls -l --color=never -- -x
uptime :: uptime
hostname :: hostname -f
id whoami :: id; whoami
uname :: uname -a 2>/dev/null
df :: df -h / /srv
du sort head :: du -sh /var/* | sort -h | head -n 20
ps grep :: ps aux | grep '[n]ginx'
ps awk :: ps -eo pid,rss,comm --sort=-rss | awk 'NR < 10 { print $1, $2 / 1024 }'
tail :: tail -n 100 -f /var/log/syslog
journalctl :: journalctl -u nginx --since '10 minutes ago' --no-pager
systemctl :: systemctl status nginx.service
sudo systemctl :: sudo systemctl restart nginx
sudo systemctl :: sudo -n systemctl restart nginx
sudo systemctl :: sudo -u root -- systemctl restart nginx
sudo systemctl :: sudo --user=root systemctl restart nginx
sudo systemctl :: sudo -uroot systemctl restart nginx
sudo apt-get :: sudo DEBIAN_FRONTEND=noninteractive apt-get install -y curl
sudo env apt-get :: sudo env LC_ALL=C apt-get update
doas rcctl :: doas -u root rcctl restart httpd
git :: git status
git :: git -C /srv/app log --oneline -5
git :: git commit -m 'Fix; rm -rf / is only text'
git :: git commit -m "Fix (a) | b"
git-upload-pack :: git-upload-pack '/srv/git/app.git'
git-receive-pack :: git-receive-pack '/srv/git/app.git'
git-upload-archive :: git-upload-archive '/srv/git/app.git'
rsync :: rsync --server --sender -vlogDtpre.iLsfxCIvu . /srv/data/
rsync :: rsync --server -vlogDtpre.iLsfxCIvu --delete . /srv/data/
scp :: scp -t /srv/in
scp :: scp -r -p -f '/srv/out dir'
cd git :: cd /srv/app && git pull --ff-only
cd npm npm :: cd /srv/app && npm ci && npm run build
mkdir cd tar :: mkdir -p /tmp/x && cd /tmp/x && tar xzf /srv/a.tgz
cat :: cat < /etc/hosts
cat tee :: cat | tee /tmp/x
cat :: cat > /tmp/upload
echo :: echo "a b" >> /tmp/log 2>&1
echo :: echo $HOME
echo :: echo "$HOME/x" ~/y
echo :: echo *.log
echo :: echo {a,b}
echo date :: echo "it is $(date)"
echo date :: echo "it is `date`"
echo date :: echo it is `date +%F`
echo basename dirname :: echo "$(basename "$(dirname /a/b)")"
echo :: echo 'it is $(date)'
echo :: echo "it is \$(date)"
echo :: echo \$\(date\)
echo :: echo it\;is
echo :: echo 'a'"'"'b'
echo :: echo $'a\tb\n'
echo :: echo ${HOME}
echo :: echo ${1:-nothing} ${#HOME} ${HOME%/*} ${HOME##*/} ${HOME/a/b}
echo :: echo ${HOME:0:3}
echo date :: echo ${x:-$(date)}
echo :: echo $((1 + 2 * (3 - 1)))
echo :: echo a # a comment
echo ls :: echo a # a comment\nls
echo :: echo a#b
echo :: echo '#' "#" \#
ls echo :: ls || echo none
ls echo :: ls && echo some || echo none
sleep echo :: sleep 5 & echo started
ls wc :: ls |\n wc -l
ls wc :: ls \\\n | wc -l
ls :: l\\\ns
ls cat :: (ls; cat)
ls cat :: { ls; cat; }
ls cat wc :: { ls; cat; } | wc -l
ls :: ! ls
ls rm :: if ls; then rm x; fi
[ cat :: if [ -f /etc/x ]; then cat /etc/x; fi
[ cat echo :: if [ -f /x ]; then cat /x; else echo no; fi
[ test a b c :: if [ -f /x ]; then a; elif test -d /y; then b; else c; fi
gzip :: for f in *.log; do gzip "$f"; done
echo seq :: for i in $(seq 3); do echo "$i"; done
sleep :: while sleep 1; do :; done :: more :
read echo :: while read -r line; do echo "$line"; done < /tmp/list
cat read echo :: cat /tmp/list | while read -r a b; do echo "$b"; done
ping :: until ping -c1 db; do sleep 1; done :: more sleep
ls cat :: case "$1" in a|b) ls;; *) cat;; esac
ls cat :: case $x in (a) ls ;; (b) cat ;; esac
f rm :: f() { rm x; }; f
f rm :: function f { rm x; }; f
f ls :: f() ( ls ); f
[[ :: [[ -f /x && -d /y ]] :: less [[
ls :: [[ -n $x ]] && ls
ls :: [[ a == a* ]] && ls
test ls :: test -f /x && ls
cat :: cat <<E\nhello\nE
cat :: cat <<E\nhello $USER\nE\n
cat date :: cat <<E\nit is $(date)\nE
cat date :: cat <<E\nit is `date`\nE
cat :: cat <<'E'\nit is $(date)\nE
cat :: cat <<"E"\nit is `date`\nE
cat ls :: cat <<E\na\nE\nls
cat ls :: cat <<E; ls\na\nE
cat wc :: cat <<E | wc -l\na\nE
cat :: cat <<-E\n\ta\n\tE
cat ls :: cat <<A <<B\nx\nA\ny\nB\nls
cat :: cat <<< "a b"
cat date :: cat <<< "$(date)"
diff sort sort :: diff <(sort a) <(sort b)
tee gzip :: tee >(gzip > x.gz)
env ls :: env ls
env ls :: env LANG=C ls
env ls :: env -i LANG=C ls
env ls :: env -u X ls
env :: env
ls :: LANG=C LC_ALL=C ls
:: x=1
:: x=1 y='2 3'
date :: x=$(date)
ls :: x=1; ls $x
nohup ls :: nohup ls
nohup sh ls :: nohup sh -c 'ls' > /dev/null 2>&1 &
nice ls :: nice -n 10 ls
nice ls :: nice -10 ls
ionice nice tar :: ionice -c3 nice -n 19 tar cf - /srv
timeout ls :: timeout 5 ls
timeout ls :: timeout -s KILL 5s ls
timeout ls :: timeout -k 5 10 ls
timeout sh ls :: timeout 5 sh -c 'ls'
time ls :: time ls
time ls :: time -p ls
exec ls :: exec ls
exec :: exec > /tmp/log
command ls :: command ls
command :: command -v python3
builtin cd :: builtin cd /x
setsid ls :: setsid ls
stdbuf ls :: stdbuf -oL ls
xargs rm :: xargs rm
find xargs rm :: find . -name '*.o' -print0 | xargs -0 rm -f
xargs ls :: xargs -n1 -P4 ls -l
xargs sh echo :: xargs sh -c 'echo "$@"' _
xargs :: xargs
find :: find /srv -type f -name '*.py'
find rm :: find . -exec rm {} +
find rm :: find . -exec rm {} \;
find rm ls :: find . -name x -exec rm {} ';' -o -execdir ls {} \;
find sh rm :: find . -exec sh -c 'rm "$1"' _ {} \;
find grep :: find . -name '*.c' -exec grep -l main {} +
find :: find . -delete
sh ls :: sh -c ls
sh ls :: sh -c 'ls -l'
sh ls rm :: sh -c 'ls; rm x'
bash ls :: bash -lc 'ls'
bash ls wc :: bash -eo pipefail -c 'ls | wc'
bash ls :: bash --norc -c 'ls'
bash sh ls :: bash -c "sh -c 'ls'"
bash sh ls :: bash -c 'sh -c "ls"'
zsh ls :: zsh -c 'ls'
sh echo :: sh -c 'echo "$1"' sh arg
sudo sh ls :: sudo sh -c 'ls'
busybox ls :: busybox ls
busybox sh ls :: busybox sh -c 'ls'
sh python3 sleep :: /bin/sh -c '/usr/bin/python3 /root/.ansible/tmp/ansible-tmp-1/AnsiballZ_ping.py && sleep 0'
sh echo sleep :: /bin/sh -c 'echo ~root && sleep 0'
sh chmod sleep :: /bin/sh -c 'chmod u+x /root/.ansible/tmp/a/ /root/.ansible/tmp/a/b.py && sleep 0'
sh rm sleep :: /bin/sh -c 'rm -f -r /root/.ansible/tmp/a/ > /dev/null 2>&1 && sleep 0'
sh umask mkdir echo sleep :: /bin/sh -c '( umask 77 && mkdir -p "` echo /root/.ansible/tmp `" && sleep 0 )'
python3 :: python3 /srv/app/manage.py migrate
python3 :: python3 -m http.server
node :: node server.js
perl :: perl /srv/x.pl
make :: make -j4 test
docker :: docker ps --format '{{.Names}}'
kubectl :: kubectl get pods -o jsonpath='{.items[*].metadata.name}'
psql :: psql -c 'select 1; drop table x'
curl jq :: curl -s https://example.com/x?a=b | jq '.a | .b'
sed :: sed -n '1,5p' /etc/passwd
sed :: sed -e 's/a/b/' -e 's|c|d|' x
awk :: awk -F: '{print $1}' /etc/passwd
grep :: grep -rE 'a|b' /srv
crontab :: crontab -l
ss :: ss -ltnp
tmp ./x x :: ./x :: names ./x x
ls :: /usr/local/bin/ls :: names ls
ls /tmp/ls :: /tmp/ls :: names /tmp/ls ls
trap rm :: trap 'rm -f /tmp/x' EXIT
trap :: trap - INT
eval ls :: eval ls -l
eval ls rm :: eval 'ls; rm x'
export ls :: export LANG=C; ls
export :: export x=1
set ls :: set -euo pipefail; ls
umask cd :: umask 022; cd /
true :: true
: :: : > /tmp/x
printf :: printf '%s\n' a b
ls :: ls 2>&1 | cat :: more cat
ls :: ls &>/dev/null
ls :: ls &> /tmp/x; true :: more true
ls rm :: ls &! rm x
ls :: ls }
ls :: >/tmp/x ls
ls :: 2>/dev/null ls
ls :: ls 2>&-
"""

OPAQUE: Final = r"""
$x
"$x"
$x ls
a=rm; $a
$(echo rm)
`echo rm`
/bin/r*
/bin/r?
[r]m x
{rm,-rf,x}
r${x}m
~/$x
eval "$x"
eval $(cat x)
source x
. ./x
sh
bash
bash -s
bash -i
bash x.sh
sh /tmp/x.sh arg
sh < /tmp/x
sh <<< 'ls'
sh <<E\nls\nE
base64 -d x | sh
curl -s https://example.com/x | bash
curl -s https://example.com/x | sudo bash
sh -c "$x"
sh -c "ls $x"
sh -c
bash --rcfile x -i
bash $x
sudo -i
sudo -s
sudo $x
sudo su -
su - root -c ls
python3
python3 -
python3 -c 'print(1)'
python3 -Ic 'print(1)'
echo x | python3
perl -e 'print 1'
perl -ne 'print' x
perl -i.e -pe s/a/b/ x
ruby -e 'puts 1'
node -e '1'
node --eval=1
php -r 'echo 1;'
env $x ls
env PATH=/tmp ls
env -S 'ls -l'
PATH=/tmp/x ls
PATH=/tmp/x; ls
LD_PRELOAD=/tmp/x.so ls
BASH_ENV=/tmp/x sh -c ls
IFS=/ ls
GIT_SSH_COMMAND=rm git fetch
path=/tmp ls
functions[ls]=rm
export PATH=/tmp
export $x
declare -n x=PATH
read PATH < /tmp/x; ls
for PATH in /tmp; do ls; done
: ${PATH:=/tmp}
printf -v PATH /tmp
alias ls=rm; ls
enable -f /tmp/x.so ls
hash -p /tmp/rm ls
bind -x '"a": rm'
complete -C rm ls
mapfile -C rm
trap "$x" EXIT
xargs env
xargs sh
xargs -I{} sh -c '{}'
xargs -I X X
find . -exec {} \;
find $x -name y
find . -exec sh -c 'rm {}' \;
find . -exec sh {} \;
find . -exec $x \;
((x))
((rm))
$((x))
echo $((x + 1))
echo $(( $(rm) ))
echo $[1]
for ((i = 0; i < 3; i++)); do ls; done
let x=1
x='a[$(rm)]'; echo ok
[[ $x -eq 1 ]]
test -v 'a[$(rm)]'
[ -v x ]
printf '%s' '$(rm)'
unset 'a[$(rm)]'
echo ${!x}
echo ${x@P}
echo ${x:$y}
echo ${a[$x]}
echo ${(e)x}
echo ${~x}
$"ls"
ls $'a\'; rm x #'
echo 'a\'; ls
[[ a || rm ]]
[[ a < b ]]
[[ a =~ (b|c) ]]
ls &>x rm
ls &| rm
ls;;rm
;ls
ls &&
ls |
| ls
&& ls
ls && || rm
(ls
ls)
{ ls
{ ls }
if ls
if ls; then
then ls
fi
for x
for in a; do ls; done
case x in
case x in a ls;; esac
while ls
do ls
echo "abc
echo 'abc
echo `abc
echo $(abc
echo ${abc
echo abc\\
cat <<E
cat <<E\nabc
cat <<$x\nabc\n$x
cat <<E\nabc\\\nE\n
cat <<E\n$(ls\nE\n)
cat <<E\n${x:-\nE\n}
ls > $x
ls > *
ls > "$(date)"
ls <
ls >
ls > > x
f() rm
f(
() { rm; }
ls (rm)
ls(rm)
echo a(b)
ls *(e:rm:)
coproc rm
time { ls; }
repeat 2 rm
watch rm
parallel rm
script -c rm
nsenter -t 1 ls
systemd-run rm
ssh other rm
tmux new-session rm
at now
/lib64/ld-linux-x86-64.so.2 /bin/rm
flock /tmp/x rm
unshare rm
!!
!rm
ls !$
ls; !-2
=rm x
{rm} x
>x { rm }
>x if rm
ls\rrm
ls\x00rm
ls\x0brm
ls\xa0rm
ls\u2028rm
ls\u202erm
ls \udcff
"`echo "x"`"
"${x:-'}'}"
${x:-{a}}
echo a # b; rm c
echo a # `rm`
foreach x (a b) rm
if (true) rm
begin; rm x; end; if true; rm; end
csh -c 'rm'
fish -c rm
pwsh -c rm
{fd}>x ls
x=(a b)(c)
select x in a; do $x; done
busybox sh
sudo -E ls
command $x
exec $x
time $x
nohup $x
timeout $x ls
env "$x"
"""
