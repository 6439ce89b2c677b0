/** Debian, as this machine's own apt is set up to reach it. */
import { spawnSync } from "node:child_process";

/** The archive of the main component, a URL; undefined where apt knows none. */
export function debianMirror(): string | undefined {
  const listed = spawnSync(
    "apt-get",
    ["indextargets", "--format", "$(REPO_URI)\t$(ORIGIN)\t$(COMPONENT)", "Created-By: Packages"],
    { encoding: "utf8" },
  );
  for (const line of (listed.stdout ?? "").split("\n")) {
    const [url, origin, component] = line.split("\t");
    // Security updates come from an archive of their own.
    if (url !== undefined && origin === "Debian" && component === "main" && !url.includes("security"))
      return url.replace(/\/$/, "");
  }
  return undefined;
}
