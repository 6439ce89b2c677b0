/** completion: what a shell needs to complete the words of a command line. */
import { Argument, Command } from "commander";
import { completionFor, SHELLS, type Shell } from "../completion.ts";
import { print } from "../output.ts";

export function completionCommand(): Command {
  return new Command("completion")
    .summary("print completion for a shell")
    .description("Print what a shell needs to complete commands, options, mounts and mount options.")
    .addArgument(new Argument("<shell>").choices([...SHELLS]))
    .addHelpText(
      "after",
      `
Examples:
  source <(mapdirect completion bash)
  mapdirect completion zsh > ~/.zsh/functions/_mapdirect
  mapdirect completion fish > ~/.config/fish/completions/mapdirect.fish`,
    )
    .action((shell: Shell, _: unknown, command: Command) => {
      print(completionFor(shell, command.parent as Command));
    });
}
