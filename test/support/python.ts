/** Python, for tests of the module in python/. */
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { packageRoot } from "../../src/region/addon.ts";

export const pythonPath = join(packageRoot, "python");

/** The first Python on PATH, and that of the system, for which Debian's packages are. */
const PYTHONS = ["python3", "/usr/bin/python3"];

const runs = (python: string, program: string): boolean =>
  spawnSync(python, ["-c", program], { stdio: "ignore" }).status === 0;

/** One that the module supports; undefined if there is none. */
export const python = PYTHONS.find((one) => runs(one, "import sys; assert sys.version_info >= (3, 8)"));

export const noPython = python === undefined ? "python3 (3.8 or newer) is not installed" : undefined;

/** One that has numpy, too. */
export const numpyPython = PYTHONS.find((one) => runs(one, "import numpy"));

export const noNumpy = numpyPython === undefined ? "python3-numpy is not installed" : undefined;
