/**
 * Builds the fuzzing program of the client library (client.c), with the library compiled in under sanitizers. What the library
 * asks the kernel about its mount goes to the program's own functions, by name.
 */
import { execFileSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { COMPILE_FLAGS, CORE_SOURCES } from "../../../scripts/build-client.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const library = join(here, "..", "..", "..", "native", "client");

/**
 * @param {string} compiler
 * @param {string} output the program
 * @param {boolean} guided by coverage, for libFuzzer (needs clang); otherwise a program by itself
 */
export function buildClient(compiler, output, guided) {
  const sanitizers = guided ? "fuzzer,address,undefined" : "address,undefined";
  const common = [
    ...["-g", "-O1", ...COMPILE_FLAGS, "-Wno-conversion", "-pthread", `-I${library}`, "-DMAPDIRECT_CHECKS"],
    ...[`-fsanitize=${sanitizers}`, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
  ];
  const substitutes = ["ioctl", "fstatfs", "epoll_wait"].map((name) => `-D${name}=fuzz_${name}`);
  const sources = CORE_SOURCES.map((name) => join(library, name));
  const object = `${output}.o`;
  execFileSync(
    compiler,
    [...common, ...(guided ? [] : ["-DSTANDALONE"]), "-c", "-o", object, join(here, "client.c")],
    {
      stdio: "inherit",
    },
  );
  execFileSync(compiler, [...common, ...substitutes, "-o", output, ...sources, object], { stdio: "inherit" });
}
