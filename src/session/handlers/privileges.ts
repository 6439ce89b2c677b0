/**
 * Setuid and setgid go when somebody without CAP_FSETID changes a file. The kernel leaves that to us (FUSE_HANDLE_KILLPRIV_V2),
 * and goes on believing in the mode that it has cached, unless it is told.
 */
import type { Request } from "../../fuse/request.ts";
import { groupsOfThread } from "../../lease/process.ts";
import type { Kill } from "../../namespace/attributes.ts";
import { type Inode, S_ISGID, S_IXGRP } from "../../namespace/inode.ts";
import type { Session } from "../session.ts";

/** What a change by this caller takes from the file. `wanted`: the caller is not privileged. */
export function killOf(request: Request, inode: Inode, wanted: boolean): Kill {
  if (!wanted || (inode.mode & (S_ISGID | S_IXGRP)) !== S_ISGID) return wanted;
  // A chown takes setuid away whoever asks for it: then even root is here.
  const isMember =
    request.uid === 0 || request.gid === inode.gid || groupsOfThread(request.pid).includes(inode.gid);
  return isMember ? true : "stranger";
}

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
