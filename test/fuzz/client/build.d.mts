export function buildClient(compiler: string, output: string, guided: boolean): void;
