export const CORE_SOURCES: readonly string[];
export const PRELOAD_SOURCES: readonly string[];
export const COMPILE_FLAGS: readonly string[];
