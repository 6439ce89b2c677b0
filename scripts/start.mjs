/**
 * `npm start`: without arguments the demonstration; `npm start -- REGION MOUNTPOINT` mounts a region in the foreground.
 */
import { spawn } from "node:child_process";
import { join } from "node:path";
import { build } from "./build.mjs";
import { fail, root, setup } from "./setup.mjs";

try {
  setup();
  build();
} catch (error) {
  fail(error);
}

const args = process.argv.slice(2);
const entry = args.length === 0 ? ["demo.js"] : ["mapdirect.js", "mount", "--foreground", ...args];
const [file, ...rest] = entry;
// npm changes into the package; paths in the arguments are meant from where the user stands.
const cwd = process.env.INIT_CWD ?? process.cwd();
const child = spawn(process.execPath, [join(root, "dist/bin", file), ...rest], { stdio: "inherit", cwd });
// The terminal sends SIGINT to the whole group; a supervisor's SIGTERM reaches only us.
process.on("SIGINT", () => {});
process.on("SIGTERM", () => child.kill("SIGTERM"));
child.on("exit", (code, signal) => {
  process.exitCode = code ?? (signal === "SIGINT" ? 130 : 1);
});
