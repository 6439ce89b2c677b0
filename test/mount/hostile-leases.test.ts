/**
 * A client that speaks the protocol itself, as another user, against somebody else's leases and answers: numbers can be
 * guessed and counted through, and none of them is a right.
 */
import { spawnSync } from "node:child_process";
import { chmodSync, closeSync, openSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { viewOf } from "../../src/layout/struct.ts";
import * as wire from "../../src/lease/wire.ts";
import { addon } from "../../src/region/addon.ts";
import type { LeaseReport } from "../../src/session/control.ts";
import { grantRequest } from "../support/grant.ts";
import { useMount } from "../support/mount.ts";
import { noOtherUser, OTHER_UID } from "../support/run.ts";

const reason = noOtherUser();
const PAGE = 4096;
const version = wire.WIRE_VERSION;

/** One ioctl: on a file, or on descriptor 3, which is inherited. */
interface Step {
  readonly path?: string;
  readonly request: number;
  readonly argument: Uint8Array;
}

interface Done {
  readonly error: string;
  readonly argument: Uint8Array;
}

const script = `
  import { openSync, readFileSync } from "node:fs";
  const { addon } = await import(process.argv[1]);
  const opened = new Map([[undefined, 3]]);
  const results = [];
  for (const { path, request, argument } of JSON.parse(readFileSync(0, "utf8"))) {
    const bytes = new Uint8Array(Buffer.from(argument, "hex"));
    let error = "";
    try {
      if (!opened.has(path)) opened.set(path, openSync(path, "r+"));
      addon().ioctl(opened.get(path), request, bytes);
    } catch (thrown) {
      error = thrown.code ?? String(thrown);
    }
    results.push({ error, argument: Buffer.from(bytes).toString("hex") });
  }
  console.log(JSON.stringify(results));`;

/** Another user does all of them in one process, in order; files stay open meanwhile. */
function asOther(steps: readonly Step[], inherited: number | "ignore" = "ignore"): Done[] {
  const input = JSON.stringify(
    steps.map((step) => ({ ...step, argument: Buffer.from(step.argument).toString("hex") })),
  );
  const module = new URL("../../dist/region/addon.js", import.meta.url).href;
  const { stdout, stderr } = spawnSync(process.execPath, ["--input-type=module", "-e", script, module], {
    input,
    stdio: ["pipe", "pipe", "pipe", inherited],
    uid: OTHER_UID,
    gid: OTHER_UID,
    encoding: "utf8",
    maxBuffer: 256 * 1024 * 1024,
  });
  expect(stderr).toBe("");
  const results = JSON.parse(stdout) as { error: string; argument: string }[];
  return results.map(({ error, argument }) => ({ error, argument: Buffer.from(argument, "hex") }));
}

function attempt(descriptor: number, { request, argument }: Step): string {
  try {
    addon().ioctl(descriptor, request, argument);
    return "";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

function leaseStep(
  request: number,
  leaseId: number,
  token: Uint8Array = new Uint8Array(16),
  path?: string,
): Step {
  const argument = new Uint8Array(wire.WireLease.size);
  wire.WireLease.encode(viewOf(argument), 0, { version, token, leaseId });
  return path === undefined ? { request, argument } : { path, request, argument };
}

function controlStep(question: number, fields: Record<string, number>, path?: string): Step {
  const argument = new Uint8Array(wire.WireControl.size);
  wire.WireControl.encode(viewOf(argument), 0, { version, question, ...fields });
  const request = wire.Ioctl.CONTROL;
  return path === undefined ? { request, argument } : { path, request, argument };
}

const { WATCH, END } = wire.Ioctl;

function errorOf(action: () => void): string {
  try {
    action();
    return "";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

interface Granted {
  readonly descriptor: number;
  readonly id: number;
  readonly token: Uint8Array;
}

function grantOn(path: string, kind: number): Granted {
  const descriptor = openSync(path, "r+");
  const argument = grantRequest(kind, 0, PAGE);
  addon().ioctl(descriptor, wire.Ioctl.GRANT, argument);
  const { leaseId, token } = wire.WireMap.decode(viewOf(argument), 0);
  return { descriptor, id: leaseId, token };
}

describe.skipIf(reason !== undefined)(
  `a hostile client of another user${reason === undefined ? "" : ` (${reason})`}`,
  () => {
    const mount = useMount();

    /** A file of the tests' user that everybody may write. */
    async function shared(mode = 0o666): Promise<string> {
      const folder = await mount.fresh();
      chmodSync(folder, 0o755);
      const path = join(folder, "file");
      writeFileSync(path, Buffer.alloc(4 * PAGE, 1));
      chmodSync(path, mode);
      return path;
    }

    test("neither watches nor ends a seal on a file that it may write", async () => {
      const path = await shared();
      const other = await shared();
      const mine = grantOn(path, wire.LeaseKind.SEAL);
      const elsewhere = grantOn(other, wire.LeaseKind.BREAKABLE);
      const ended = grantOn(path, wire.LeaseKind.BREAKABLE);
      closeSync(ended.descriptor);
      try {
        const wrongBit = Uint8Array.from(mine.token);
        wrongBit[15]! ^= 1;
        const steps = [
          ...[new Uint8Array(16), wrongBit, elsewhere.token, ended.token].flatMap((token) => [
            leaseStep(WATCH, mine.id, token, path),
            leaseStep(END, mine.id, token, path),
          ]),
          // The token is known, but the file is another one; and END alone, without a watch.
          leaseStep(WATCH, mine.id, mine.token, other),
          leaseStep(END, mine.id, mine.token, path),
          leaseStep(WATCH, 0, mine.token, path),
          leaseStep(WATCH, mine.id + 1_000_000, mine.token, path),
        ];
        for (const { error } of asOther(steps)) expect(["EACCES", "EINVAL", "ENOENT"]).toContain(error);
        expect(errorOf(() => truncateSync(path, 0))).toBe("ETXTBSY");
      } finally {
        closeSync(mine.descriptor);
        closeSync(elsewhere.descriptor);
      }
      truncateSync(path, 0);
    });

    test("ends a lease whose token it was given, once, and no later one with it", async () => {
      const path = await shared();
      const first = grantOn(path, wire.LeaseKind.SEAL);
      const second = grantOn(path, wire.LeaseKind.SEAL);
      try {
        const errors = asOther([
          leaseStep(WATCH, first.id, first.token, path),
          leaseStep(END, second.id, first.token, path),
          leaseStep(END, first.id, first.token, path),
          leaseStep(WATCH, first.id, first.token, path),
          leaseStep(WATCH, second.id, first.token, path),
        ]).map(({ error }) => error);
        expect(errors).toEqual(["", "EINVAL", "", "ENOENT", "EACCES"]);
        expect(errorOf(() => truncateSync(path, 0))).toBe("ETXTBSY");
        // The holder itself needs no token.
        expect(attempt(second.descriptor, leaseStep(END, second.id))).toBe("");
        truncateSync(path, 0);
      } finally {
        closeSync(first.descriptor);
        closeSync(second.descriptor);
      }
    });

    test("reads no answer of somebody else's, drops none, and pushes none out", async () => {
      const path = await shared();
      const granted = Array.from({ length: 120 }, () => grantOn(path, wire.LeaseKind.BREAKABLE));
      const descriptor = openSync(path, "r+");
      const sameUser = openSync(path, "r+");
      const { LEASES, STATS } = wire.Question;
      try {
        const asked = controlStep(LEASES, {});
        expect(attempt(descriptor, asked)).toBe("");
        const { token, count, total } = wire.WireControl.decode(viewOf(asked.argument), 0);
        expect(total).toBeGreaterThan(count);
        const last = { token, offset: total - 1 };
        const guesses = Array.from({ length: token + 4 }, (_, at) =>
          controlStep(LEASES, { token: at + 1 }, path),
        );
        // Each is kept, since it is not read to its end.
        const kept = Array.from({ length: 40 }, () => controlStep(STATS, { offset: 2 ** 40 }, path));
        const steps = [...guesses, controlStep(LEASES, last, path), ...kept];
        const inherited = [controlStep(LEASES, last), controlStep(LEASES, { token })];
        for (const { error } of asOther(steps)) expect(["ESTALE", "EINVAL"]).toContain(error);
        for (const { error } of asOther(inherited, descriptor)) expect(error).toBe("ESTALE");
        expect(attempt(sameUser, controlStep(LEASES, last))).toBe("ESTALE");
        expect(attempt(descriptor, controlStep(LEASES, last))).toBe("");
      } finally {
        for (const open of [descriptor, sameUser, ...granted.map((one) => one.descriptor)]) closeSync(open);
      }
    });

    test("learns of the leases on the file that it has open, and not of those on a file that it may not open", async () => {
      const secret = await shared(0o600);
      const open = await shared();
      const hidden = grantOn(secret, wire.LeaseKind.SEAL);
      const seen = grantOn(open, wire.LeaseKind.SEAL);
      const inodeOf = (descriptor: number): number => {
        const argument = new Uint8Array(wire.WIRE_MAP_BYTES);
        wire.WireMap.encode(viewOf(argument), 0, { version });
        addon().ioctl(descriptor, wire.Ioctl.EXTENTS, argument);
        return wire.WireMap.decode(viewOf(argument), 0).inode;
      };
      try {
        const answers = asOther([
          controlStep(wire.Question.LEASES, { argument: inodeOf(hidden.descriptor) }, open),
          controlStep(wire.Question.LEASES, { argument: inodeOf(seen.descriptor) }, open),
        ]).map(({ argument }) => {
          const { text, count } = wire.WireControl.decode(viewOf(argument), 0);
          return JSON.parse(Buffer.from(text).toString("utf8", 0, count)) as LeaseReport[];
        });
        expect(answers.map((leases) => leases.map(({ id }) => id))).toEqual([[], [seen.id]]);
      } finally {
        closeSync(hidden.descriptor);
        closeSync(seen.descriptor);
      }
    });

    test("gets an errno for each request of the version before, of another size, and of the administrator's", async () => {
      const path = await shared();
      const mine = grantOn(path, wire.LeaseKind.SEAL);
      try {
        const old = Object.values(wire.Ioctl)
          .filter((request) => ((request >>> 30) & 1) === 1)
          .map((request) => {
            const argument = new Uint8Array((request >>> 16) & 0x3fff);
            argument[0] = version - 1;
            return { path, request, argument };
          });
        for (const { error } of asOther(old)) expect(["EINVAL", "EACCES"]).toContain(error);
        const resized = [wire.Ioctl.WATCH, wire.Ioctl.END].map((request) => ({
          path,
          request: (request + (16 << 16)) >>> 0,
          argument: leaseStep(request, mine.id, mine.token).argument.slice(0, 32),
        }));
        const padded = resized.map((step) => ({
          ...step,
          argument: Buffer.concat([step.argument, new Uint8Array(16)]),
        }));
        for (const { error } of asOther(padded)) expect(error).toBe("ENOTTY");
        const { BREAK, CHECK, RESIZE, DUMP, MAP, WHERE } = wire.Question;
        const asked = [BREAK, CHECK, RESIZE, DUMP, MAP, WHERE].map((question) =>
          controlStep(question, { argument: question === BREAK ? mine.id : 1 }, path),
        );
        for (const { error } of asOther(asked)) expect(error).toBe("EACCES");
        expect(errorOf(() => truncateSync(path, 0))).toBe("ETXTBSY");
      } finally {
        closeSync(mine.descriptor);
      }
    });
  },
);
