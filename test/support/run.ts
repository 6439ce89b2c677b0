/** Running other programs in tests: never through a shell, always with a time limit. */
import { execFile, execFileSync } from "node:child_process";
import { statSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../../src/region/addon.ts";

export const programPath = join(packageRoot, "dist", "bin", "mapdirect.js");

export interface Result {
  code: number;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  /** Run as this user and group, without capabilities (needs root). */
  user?: number;
  cwd?: string;
  env?: Record<string, string>;
  timeoutMs?: number;
}

/** `nobody` on Debian; any user without rights would do. */
export const OTHER_UID = 65534;

/** Run a program to its end; whatever its exit code. One that is killed by a signal or the time limit throws. */
export function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<Result> {
  const { user, cwd, env, timeoutMs = 50_000 } = options;
  const prefix = user === undefined ? [] : asUser(user);
  const [file, ...rest] = [...prefix, command, ...args];
  return new Promise((done, failed) => {
    execFile(
      file as string,
      rest,
      {
        cwd,
        env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin`, ...env },
        timeout: timeoutMs,
        killSignal: "SIGKILL",
        maxBuffer: 64 * 1024 * 1024,
      },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : error.code;
        if (typeof code === "number") done({ code, stdout, stderr });
        else failed(new Error(`${command} ${args.join(" ")}: ${error?.message}\n${stdout}${stderr}`));
      },
    );
  });
}

/** Run a program that must succeed; its standard output. */
export async function succeed(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const { code, stdout, stderr } = await run(command, args, options);
  if (code !== 0) throw new Error(`${command} ${args.join(" ")}: exit code ${code}\n${stdout}${stderr}`);
  return stdout;
}

export function cli(args: readonly string[], options: RunOptions = {}): Promise<Result> {
  return run(process.execPath, [programPath, ...args], options);
}

const asUser = (uid: number): string[] => [
  "setpriv",
  `--reuid=${uid}`,
  `--regid=${uid}`,
  "--clear-groups",
  "--",
];

/** Undefined if the program can be run, else the reason to skip. */
export function missing(...commands: readonly string[]): string | undefined {
  for (const command of commands) {
    try {
      execFileSync("sh", ["-c", `PATH="$PATH:/usr/sbin:/sbin"; command -v "$1"`, "sh", command], {
        stdio: "ignore",
      });
    } catch {
      return `${command} is not installed`;
    }
  }
  return undefined;
}

export const notRoot = process.getuid?.() === 0 ? undefined : "needs root";

/** Why an ordinary user cannot mount here. */
export function noUserMount(): string | undefined {
  const reason = noOtherUser() ?? missing("fusermount3");
  if (reason !== undefined) return reason;
  // udev makes it so on every ordinary system; a bare devtmpfs does not.
  if ((statSync("/dev/fuse").mode & 0o666) !== 0o666) return "/dev/fuse is not open to all users (chmod 666)";
  return undefined;
}

/** Why the program cannot be run as another user here: not root, or a home directory that others may not enter. */
export function noOtherUser(): string | undefined {
  if (notRoot !== undefined) return notRoot;
  const lacking = missing("setpriv");
  if (lacking !== undefined) return lacking;
  const [command, ...args] = asUser(OTHER_UID);
  try {
    execFileSync(command as string, [...args, process.execPath, programPath, "--version"], {
      stdio: "ignore",
    });
  } catch {
    return `user ${OTHER_UID} may not run ${programPath}`;
  }
  return undefined;
}
