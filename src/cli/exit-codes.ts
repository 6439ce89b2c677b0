/** Exit codes that are not 0, 1 and 2. */

/** Of fsck(8). */
export const FsckExit = { CLEAN: 0, CORRECTED: 1, UNCORRECTED: 4, FAILED: 8, USAGE: 16 } as const;
