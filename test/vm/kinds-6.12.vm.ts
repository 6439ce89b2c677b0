import { kindsOn } from "./kinds.ts";

kindsOn("6.12", { clientPrograms: true });
