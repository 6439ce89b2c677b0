/**
 * The door of direct_group=: a unix socket at which members of a group get a descriptor of the region, so that they can
 * map it although its own permissions do not let them in.
 *
 * Invariants:
 * - who may connect is decided by the kernel: the socket's file belongs to the group and has mode 0660, and from bind(2)
 *   until that is so nobody else can connect (the umask leaves no bit for others to write);
 * - what is handed out is an open file description of its own: neither the daemon's lock nor its file position goes
 *   along;
 * - nothing is read from whoever connects and nobody is waited for: one message is sent, and the connection closed;
 * - the socket lies in a directory that this user alone can change.
 */
import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, lstatSync, mkdirSync, rmdirSync, rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { basename, join } from "node:path";
import { guarded } from "../base/faults.ts";
import type { MappedRegion } from "../region/native-region.ts";
import { asFailure, Failure, reason } from "./failure.ts";
import type { Log } from "./log.ts";

/** More that wait to be served at a time are turned away: each is served at once, so only a flood comes so far. */
const CONNECTIONS_MAX = 64;

export class Door {
  readonly path: string;
  readonly #server: Server;
  readonly #folder: string;

  private constructor(path: string, folder: string, server: Server) {
    this.path = path;
    this.#folder = folder;
    this.#server = server;
  }

  /**
   * @param group name or number; an ordinary user can only name one of their own (chown(2)).
   * Its name is that of the region, not of the volume, of which there may be copies: whoever has locked the region is the
   * only one to open a door for it.
   * @throws Failure
   */
  static async open(region: MappedRegion, group: string, log: Log): Promise<Door> {
    const gid = groupNumber(group);
    const folder = ownFolder();
    const path = join(folder, socketName(region));
    // Left by a daemon that died.
    rmSync(path, { force: true });
    const server = createServer(
      { pauseOnConnect: true },
      guarded("handing out a descriptor", (socket: Socket) => admit(socket, region, log)),
    );
    server.maxConnections = CONNECTIONS_MAX;
    const umask = process.umask(0o177);
    try {
      await new Promise<void>((listening, failed) => {
        server.once("error", failed);
        server.listen({ path, backlog: CONNECTIONS_MAX }, listening);
      });
      chownSync(path, -1, gid);
      chmodSync(path, 0o660);
    } catch (error) {
      server.close();
      throw asFailure(error, `direct_group=${group}`, "name a group that you belong to");
    } finally {
      process.umask(umask);
    }
    server.on("error", (error) => log.warn(`${path}: ${error.message}`));
    // The mount keeps the daemon alive, not this.
    server.unref();
    return new Door(path, folder, server);
  }

  /** What a daemon of this region that died has left, where the next one opens none. Whoever calls has the region locked. */
  static clear(region: MappedRegion): void {
    removeSocket(folderPath(), socketName(region));
  }

  close(): void {
    this.#server.close();
    removeSocket(this.#folder, basename(this.path));
  }
}

const socketName = ({ facts: { device, inode } }: MappedRegion): string =>
  `${device.toString(16)}-${inode}.sock`;

function removeSocket(folder: string, name: string): void {
  try {
    // In the folder of somebody else, below /tmp, nothing is ours.
    if (lstatSync(folder).uid !== process.geteuid?.()) return;
    rmSync(join(folder, name), { force: true });
    rmdirSync(folder);
  } catch {
    // It is not there; or other mounts have their doors there.
  }
}

function admit(socket: Socket, region: MappedRegion, log: Log): void {
  socket.on("error", () => {});
  try {
    region.handOut(descriptorOf(socket));
  } catch (error) {
    log.warn(`a descriptor of ${region.facts.path} could not be handed out: ${reason(error)}`);
  }
  socket.destroy();
}

/** Node has no public name for it; the handle of a pipe has had this one since there are pipes (lib/net.js). */
function descriptorOf(socket: Socket): number {
  const handle = (socket as unknown as { _handle?: { fd?: number } | null })._handle;
  const descriptor = handle?.fd;
  if (typeof descriptor !== "number" || descriptor < 0)
    throw new Error("this Node.js shows no descriptor of a socket");
  return descriptor;
}

function groupNumber(group: string): number {
  if (/^\d+$/.test(group)) return Number(group);
  try {
    // As everything else that has to do with names of groups, wherever they are kept.
    const line = execFileSync("getent", ["group", group], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"],
    });
    const gid = Number(line.split(":")[2]);
    if (Number.isInteger(gid)) return gid;
  } catch {
    // getent says 2 for a name that it does not know.
  }
  throw new Failure(`direct_group=${group}`, "there is no such group", "see 'getent group'");
}

/** For root below /run; for others below /tmp, where the sticky bit keeps it theirs. */
function folderPath(): string {
  const uid = process.geteuid?.() ?? 0;
  return uid === 0 ? "/run/mapdirect" : `/tmp/mapdirect-${uid}`;
}

function ownFolder(): string {
  const uid = process.geteuid?.() ?? 0;
  const folder = folderPath();
  try {
    mkdirSync(folder, { mode: 0o711 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST")
      throw asFailure(error, folder, "it is to hold a socket");
  }
  const found = lstatSync(folder);
  if (!found.isDirectory() || found.uid !== uid || (found.mode & 0o022) !== 0) {
    throw new Failure(folder, "it is not a directory that you alone can change", "remove it");
  }
  chmodSync(folder, 0o711);
  return folder;
}
