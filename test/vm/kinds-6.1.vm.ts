import { kindsOn } from "./kinds.ts";

kindsOn("6.1", { clientPrograms: true });
