/** `npm run format`: rewrites TypeScript, JavaScript, JSON, C and C++ in the project's format. */
import { fail, hasCommand, localBin, nativeSources, run, setup } from "./setup.mjs";

try {
  setup();
  run(localBin("biome"), ["check", "--write", "."]);
  const files = nativeSources();
  if (files.length > 0 && hasCommand("clang-format")) run("clang-format", ["-i", ...files]);
} catch (error) {
  fail(error);
}
