/** Extended attributes. Who may use which name was checked by the kernel; which names exist here is ours to say. */
import { FsError } from "../../base/errors.ts";
import { putXattrSize } from "../../fuse/encode.ts";
import { GetxattrIn, SetxattrFlag, SetxattrIn } from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { ACL_ACCESS, ACL_DEFAULT } from "../../namespace/acl.ts";
import { getXattr, removeXattr, setAcl, setXattr } from "../../namespace/attributes.ts";
import { FLAGS_ATTRIBUTE } from "../../namespace/inode-flags.ts";
import type { Session } from "../session.ts";

const NAMESPACES = ["user.", "trusted.", "security."];

const isAcl = (name: string): boolean => name === ACL_ACCESS || name === ACL_DEFAULT;

function checkNamespace(session: Session, name: string): void {
  // Without FUSE_POSIX_ACL nobody would enforce the lists.
  if (isAcl(name) && session.negotiated?.features.POSIX_ACL === true) return;
  if (!NAMESPACES.some((prefix) => name.startsWith(prefix))) throw new FsError("EOPNOTSUPP", name);
  if (NAMESPACES.includes(name)) throw new FsError("EINVAL", "an attribute name without an end");
}

export function setxattr(session: Session, request: Request): void {
  const { store } = session.volume;
  const { flags, setxattrFlags } = request.body(SetxattrIn);
  const name = request.name();
  checkNamespace(session, name);
  const value = Uint8Array.prototype.slice.call(request.data());
  const inode = store.inode(request.nodeid);
  if (isAcl(name)) setAcl(store, inode, name, value, (setxattrFlags & SetxattrFlag.ACL_KILL_SGID) !== 0);
  else setXattr(store, inode, name, value, flags);
  session.reply(request, 0);
}

function replySized(session: Session, request: Request, value: Uint8Array): void {
  const { size } = request.body(GetxattrIn);
  if (size === 0) session.reply(request, putXattrSize(session.outView, 0, value.length));
  else if (value.length > size) throw new FsError("ERANGE");
  else session.replyBytes(request, value);
}

export function getxattr(session: Session, request: Request): void {
  const name = request.name();
  checkNamespace(session, name);
  replySized(session, request, getXattr(session.volume.store.inode(request.nodeid), name));
}

export function listxattr(session: Session, request: Request): void {
  const inode = session.volume.store.inode(request.nodeid);
  let list = "";
  for (const name of inode.xattrs?.keys() ?? []) {
    if (name === FLAGS_ATTRIBUTE) continue;
    // xattr(7): trusted attributes are visible to the privileged alone.
    if (request.uid === 0 || !name.startsWith("trusted.")) list += `${name}\0`;
  }
  replySized(session, request, Buffer.from(list, "latin1"));
}

export function removexattr(session: Session, request: Request): void {
  const { store } = session.volume;
  const name = request.name();
  checkNamespace(session, name);
  const inode = store.inode(request.nodeid);
  // To take away a list that is not there is no error (set_posix_acl, fs/posix_acl.c).
  if (!isAcl(name) || inode.xattrs?.has(name) === true) removeXattr(store, inode, name);
  session.reply(request, 0);
}
