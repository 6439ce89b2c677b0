/**
 * Setuid and setgid go when somebody without CAP_FSETID changes a file. The kernel leaves that to us (FUSE_HANDLE_KILLPRIV_V2),
 * and goes on believing in the mode that it has cached, unless it is told.
 */
import type { Request } from "../../fuse/request.ts";
import { CAP_FSETID, groupsOfThread, hasCapability } from "../../lease/process.ts";
import type { Kill } from "../../namespace/attributes.ts";
import { type Inode, S_ISGID, S_ISUID, S_IXGRP } from "../../namespace/inode.ts";
import type { Session } from "../session.ts";

/** What a change by this caller takes from the file. `wanted`: the caller is not privileged. */
export function killOf(request: Request, inode: Inode, wanted: boolean): Kill {
  if (!wanted || (inode.mode & (S_ISGID | S_IXGRP)) !== S_ISGID) return wanted;
  // A chown takes setuid away whoever asks for it: then even who is privileged is here.
  const isMember =
    request.gid === inode.gid || groupsOfThread(request.pid).includes(inode.gid) || hasSetIdRight(request);
  return isMember ? true : "stranger";
}

/** Who has this capability, or, where that cannot be seen, root. */
export const mayAsRoot = ({ uid, pid }: Request, capability: number): boolean =>
  hasCapability(pid, capability) ?? uid === 0;

/** Whose writes leave setuid and setgid alone: for requests in which the kernel does not say so. */
const hasSetIdRight = (request: Request): boolean => mayAsRoot(request, CAP_FSETID);

/** As `wanted` of killOf() for those requests: whether the caller is not privileged is looked up where it matters. */
export const lacksSetIdRight = (request: Request, inode: Inode): boolean =>
  (inode.mode & (S_ISUID | S_ISGID)) !== 0 && !hasSetIdRight(request);

/** Run a change; if it takes setuid or setgid away, the kernel forgets the mode before the caller has its answer. */
export function killing<T>(
  session: Session,
  request: Request,
  inode: Inode,
  wanted: boolean,
  change: (kill: Kill) => T,
): T {
  const before = inode.mode;
  const result = change(killOf(request, inode, wanted));
  if (inode.mode !== before) session.forgetAttributes(inode);
  return result;
}
