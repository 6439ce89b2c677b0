/** Extended attributes. Who may use which name was checked by the kernel; which names exist here is ours to say. */
import { FsError } from "../../base/errors.ts";
import { putXattrSize } from "../../fuse/encode.ts";
import { GetxattrIn, SetxattrIn } from "../../fuse/kernel.ts";
import type { Request } from "../../fuse/request.ts";
import { getXattr, removeXattr, setXattr } from "../../namespace/attributes.ts";
import type { Session } from "../session.ts";

/** POSIX ACLs (system.posix_acl_…) are not stored: the kernel would not enforce them without FUSE_POSIX_ACL. */
const NAMESPACES = ["user.", "trusted.", "security."];

function checkNamespace(name: string): void {
  if (!NAMESPACES.some((prefix) => name.startsWith(prefix))) throw new FsError("EOPNOTSUPP", name);
}

export function setxattr(session: Session, request: Request): void {
  const { store } = session.volume;
  const { flags } = request.body(SetxattrIn);
  const name = request.name();
  checkNamespace(name);
  const value = Uint8Array.prototype.slice.call(request.data());
  setXattr(store, store.inode(request.nodeid), name, value, flags);
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
  checkNamespace(name);
  replySized(session, request, getXattr(session.volume.store.inode(request.nodeid), name));
}

export function listxattr(session: Session, request: Request): void {
  const inode = session.volume.store.inode(request.nodeid);
  let list = "";
  for (const name of inode.xattrs?.keys() ?? []) {
    // xattr(7): trusted attributes are visible to the privileged alone.
    if (request.uid === 0 || !name.startsWith("trusted.")) list += `${name}\0`;
  }
  replySized(session, request, Buffer.from(list, "latin1"));
}

export function removexattr(session: Session, request: Request): void {
  const { store } = session.volume;
  const name = request.name();
  checkNamespace(name);
  removeXattr(store, store.inode(request.nodeid), name);
  session.reply(request, 0);
}
