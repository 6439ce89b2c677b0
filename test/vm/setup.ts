/** Before the first guest: kernels, and the programs that guests run. What is not there is a reason to skip, or to stop. */
import type { TestProject } from "vitest/node";
import { fetchKernel, KERNELS, Unavailable } from "./kernels.ts";
import { cache, type Kernels } from "./machine.ts";
import { buildPrograms } from "./programs.ts";

export function setup(project: TestProject): void {
  const kernels: Kernels = {};
  for (const row of KERNELS) {
    try {
      kernels[row.name] = fetchKernel(row, cache);
    } catch (error) {
      if (!(error instanceof Unavailable) || row.baseline) throw error;
      kernels[row.name] = `${row.suite}: ${error.message}`;
      process.stderr.write(`vm: no kernel of ${row.suite}: ${error.message}\n`);
    }
  }
  project.provide("kernels", kernels);
  project.provide("programs", buildPrograms(cache));
}
