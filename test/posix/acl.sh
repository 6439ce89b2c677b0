# POSIX access control lists, as getfacl(1) and the kernel see them: run on the mount and on tmpfs, the lines have to be the
# same. usage: acl.sh FOLDER (as root)
cd "$1" || exit 2
another() { setpriv --reuid "$1" --regid "$1" --clear-groups sh -c "$2"; echo "uid $1: $2: $?"; }
umask 022
touch f
setfacl -m u:65534:rw,g:100:r f
getfacl -n f
stat -c %a f
for mode in 600 775 640; do chmod $mode f; getfacl -n f; done
mkdir d
setfacl -d -m u:65534:rwx,o::- d
getfacl -n d
umask 077
touch d/x
mkdir d/sub
mkfifo d/pipe
ln -s x d/link
getfacl -n d/x d/sub d/pipe
stat -c '%a %n' d/x d/sub d/pipe d/link
another 65534 'echo hi > d/x && cat d/x'
another 65534 'cat f'
another 65534 'echo x >> f'
another 12345 'cat f'
another 65534 'setfacl -m u:1:r f'
umask 022
setfacl -m u::rwx,g::rx,o::r f
setfacl -b f
getfacl -n f
stat -c %a f
setfacl -k d
getfacl -n d
touch d/y
stat -c %a d/y
setfacl -d -m u:1:r f
echo "default list of a file: $?"
getfattr -d -m - d d/x d/sub f
setfacl -m u:1:rwx d
cp -a d e
getfacl -n e e/x
mkdir g
chgrp 7 g
chmod 2775 g
setfacl -m g:7:rwx g
stat -c %a g
touch rename-me
setfacl -m u:3:r rename-me
mv rename-me d/moved
getfacl -n d/moved
python3 - <<'P'
import os
whole = bytes.fromhex("02000000" "01000600ffffffff" "0400040 0ffffffff".replace(" ", "") + "20000400ffffffff")
lists = {
    "nothing": b"",
    "version 1": b"\x01\0\0\0",
    "no entries": b"\x02\0\0\0",
    "one entry": whole[:12],
    "the bits": whole,
    "cut": whole[:-1],
    "permission 8": whole[:6] + b"\x08\0" + whole[8:],
    "unsorted": whole[:4] + whole[12:20] + whole[4:12] + whole[20:],
}
for name, value in lists.items():
    try:
        os.setxattr("f", "system.posix_acl_access", value)
        print(name, "ok", oct(os.stat("f").st_mode))
    except OSError as error:
        print(name, error.strerror)
try:
    print(os.getxattr("f", "system.posix_acl_access"))
except OSError as error:
    print(error.strerror)
P
