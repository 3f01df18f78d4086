"""Show who made which version champion, when and why.

Every decision of register, promote and rollback, oldest first, with what the gate refused and moves of the alias
that no decision made, such as by MLflow's own button.
"""

import argparse


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, with all figures")


def run(arguments: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from pipeline.tracking import decisions
    from pipeline.tracking.store import connect, project_name

    client = connect()
    history, alias = decisions.read_history(client), decisions.champion_number(client)
    if arguments.json:
        found = [asdict(each) | {"at": each.at.isoformat()} for each in history.decisions]
        known = {"project": project_name(), "alias": alias, "champion": history.champion, "ever": history.ever}
        print(json.dumps(known | {"decisions": found}, indent=2, ensure_ascii=False))
        return
    for each in history.decisions:
        void = " (void: another version was champion by then)" if each.void else ""
        who = f"{each.at:%Y-%m-%d %H:%M} UTC  {each.by}"
        print(f"{each.number}  {who}  {decisions.describe_move(each)}{void}: {each.reason}")
    shown = [f"version {number}" if number else "none" for number in (history.champion, alias)]
    print(f"Champion of {project_name()}: {shown[0]}. Ever champion: {', '.join(map(str, history.ever)) or 'none'}.")
    if history.pending:
        print("The last decision was cut short; the next `hyojo promote`, `rollback` or `register` finishes it.")
    elif alias != history.champion:
        print(f"The alias was moved outside the gate since: {shown[1]} is served as champion.")
