/** placeholder until written below */
export async function demo(): Promise<void> {}
