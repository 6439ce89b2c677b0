/** leases: who maps what directly. */
import { Command } from "commander";
import { Failure } from "../../daemon/failure.ts";
import { ask, withOpen } from "../client.ts";
import { print, table, toJson } from "../output.ts";

/** One lease as the daemon tells it. */
export interface LeaseReport {
  id: number;
  kind: string;
  state: string;
  pid: number;
  uid: number;
  command: string;
  file: string;
  inode: number;
  offset: number | string;
  length: number | string;
  age_s: number;
}

export function leasesCommand(): Command {
  return new Command("leases")
    .summary("list the leases on a mount")
    .description(
      "List the leases on a mount: one for each direct mapping, with who holds it and for how long.",
    )
    .argument("<mountpoint>", "where a region is mounted, or any file there")
    .option("--json", "print JSON", false)
    .addHelpText(
      "after",
      `
Examples:
  mapdirect leases /mnt
  mapdirect leases --json /mnt`,
    )
    .action(leases);
}

export function asLeases(answer: unknown): LeaseReport[] {
  if (!Array.isArray(answer))
    throw new Failure("daemon", "its list of leases is no list", "update mapdirect");
  return answer as LeaseReport[];
}

function leases(path: string, flags: { json: boolean }): void {
  const all = withOpen(path, (descriptor) => asLeases(ask(descriptor, "LEASES")));
  if (flags.json) {
    const stable = all.map(({ id, kind, state, pid, uid, command, file, offset, length, age_s }) => {
      return { id, kind, state, pid, uid, command, file, offset, length, age_s };
    });
    print(toJson(stable));
    return;
  }
  if (all.length === 0) {
    print("no leases");
    return;
  }
  const rows = all.map((lease) => [
    `${lease.id}`,
    lease.kind,
    lease.state,
    `${lease.pid}`,
    `${lease.uid}`,
    lease.command,
    `${lease.offset}`,
    `${lease.length}`,
    `${Math.floor(lease.age_s)} s`,
    lease.file,
  ]);
  print(table(["id", "kind", "state", "pid", "uid", "command", "offset", "length", "age", "file"], rows));
}
