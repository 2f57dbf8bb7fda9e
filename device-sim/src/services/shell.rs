//! The device's shell: enough of a command line to run what tools send to a phone.
//!
//! Quotes, backslashes, `;`, `&&`, `||`, assignments in front of a command, and sending output to
//! `/dev/null`. Not a shell: no pipes, variables, globs or input. Invariant: what is not understood
//! is an error on stderr and a non-zero exit code, never a guess.

use tokio::io::AsyncWrite;

use super::output::Output;
use super::{Services, commands};

/// Longest command line; a real adbd takes one packet.
const MAX_LINE: usize = 64 * 1024;

/// One command with its words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Command {
    /// `NAME=value` in front of the command.
    pub(crate) assignments: Vec<(String, String)>,
    /// The command and its arguments.
    pub(crate) words: Vec<String>,
    /// Whether standard output goes to `/dev/null`.
    pub(crate) quiet: bool,
    /// Whether standard error goes to `/dev/null`.
    pub(crate) quiet_errors: bool,
    /// When to run it, given how the previous one ended.
    pub(crate) when: When,
}

impl Command {
    /// The value of an assignment in front of the command.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.assignments.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The arguments after the command's name.
    pub(crate) fn args(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

/// What stands between a command and the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum When {
    /// `;` or the beginning.
    #[default]
    Always,
    /// `&&`
    Succeeded,
    /// `||`
    Failed,
}

/// Runs a command line and returns the exit code.
pub(crate) async fn run<W: AsyncWrite + Unpin + Send>(
    services: &Services,
    line: &str,
    output: &mut Output<W>,
) -> std::io::Result<u8> {
    let parsed = match parse(line) {
        Ok(parsed) => parsed,
        Err(why) => {
            output.stderr(format!("/system/bin/sh: {why}\n").as_bytes()).await?;
            return Ok(2);
        }
    };
    let mut code = 0;
    for command in parsed {
        let run = match command.when {
            When::Always => true,
            When::Succeeded => code == 0,
            When::Failed => code != 0,
        };
        if !run {
            continue;
        }
        if command.words.first().is_some_and(|w| w == "exit") {
            return Ok(command.args().first().and_then(|n| n.parse().ok()).unwrap_or(code));
        }
        code = commands::run(services, &command, output).await?;
    }
    Ok(code)
}

/// Splits a line into commands; the error is what a shell would say.
pub(crate) fn parse(line: &str) -> Result<Vec<Command>, String> {
    if line.trim().is_empty() {
        return Err("an interactive shell is not simulated; give a command".to_owned());
    }
    if line.len() > MAX_LINE {
        return Err("command line too long".to_owned());
    }
    let mut commands = vec![Command::default()];
    for token in (Tokens { rest: line.chars().peekable() }) {
        // There is always at least the command pushed last.
        let Some(current) = commands.last_mut() else { break };
        match token? {
            Token::Word(word) => add_word(current, word),
            Token::Operator(";") => commands.push(Command::default()),
            Token::Operator("&&") => {
                commands.push(Command { when: When::Succeeded, ..Command::default() });
            }
            Token::Operator("||") => {
                commands.push(Command { when: When::Failed, ..Command::default() });
            }
            Token::Operator(other) => return Err(format!("`{other}` is not simulated")),
        }
    }
    commands.retain(|c| !c.words.is_empty() || !c.assignments.is_empty());
    Ok(commands)
}

fn add_word(command: &mut Command, word: String) {
    match word.as_str() {
        "2>&1" | "</dev/null" => {}
        ">/dev/null" | "1>/dev/null" => command.quiet = true,
        "2>/dev/null" => command.quiet_errors = true,
        _ => match word.split_once('=') {
            Some((name, value)) if command.words.is_empty() && is_name(name) => {
                command.assignments.push((name.to_owned(), value.to_owned()));
            }
            _ => command.words.push(word),
        },
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

enum Token {
    Word(String),
    Operator(&'static str),
}

struct Tokens<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
}

impl Iterator for Tokens<'_> {
    type Item = Result<Token, String>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.rest.next_if(|c| matches!(c, ' ' | '\t' | '\r')).is_some() {}
        let operator = match self.rest.peek()? {
            ';' | '\n' => ";",
            '&' => "&",
            '|' => "|",
            _ => return Some(self.word()),
        };
        self.rest.next();
        Some(Ok(Token::Operator(match operator {
            "&" if self.rest.next_if_eq(&'&').is_some() => "&&",
            "|" if self.rest.next_if_eq(&'|').is_some() => "||",
            other => other,
        })))
    }
}

impl Tokens<'_> {
    fn word(&mut self) -> Result<Token, String> {
        let mut word = String::new();
        while let Some(c) = self.rest.peek().copied() {
            // The ampersand of `2>&1` belongs to its word.
            let in_redirect = c == '&' && word.ends_with('>');
            if matches!(c, ' ' | '\t' | '\r' | '\n' | ';' | '&' | '|') && !in_redirect {
                break;
            }
            self.rest.next();
            match c {
                '\'' => self.quoted('\'', &mut word)?,
                '"' => self.quoted('"', &mut word)?,
                '\\' => word.extend(self.rest.next()),
                _ => word.push(c),
            }
        }
        Ok(Token::Word(word))
    }

    fn quoted(&mut self, quote: char, word: &mut String) -> Result<(), String> {
        loop {
            match self.rest.next() {
                None => return Err("no closing quote".to_owned()),
                Some(c) if c == quote => return Ok(()),
                Some('\\') if quote == '"' => match self.rest.next() {
                    Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                    other => {
                        word.push('\\');
                        word.extend(other);
                    }
                },
                Some(c) => word.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Vec<String>> {
        parse(line).unwrap().into_iter().map(|c| c.words).collect()
    }

    #[test]
    fn quotes_and_backslashes_group_words() {
        assert_eq!(
            words("input text 'a b' c\\ d \"e \\\" f\""),
            [["input", "text", "a b", "c d", "e \" f"]]
        );
        assert_eq!(words("screencap '-p'"), [["screencap", "-p"]]);
        assert_eq!(words("echo ''"), [["echo", ""]]);
        assert_eq!(parse("echo 'open"), Err("no closing quote".to_owned()));
    }

    #[test]
    fn a_scrcpy_start_is_one_command_with_an_assignment() {
        let line =
            "CLASSPATH=/data/local/tmp/s.jar app_process / com.genymobile.scrcpy.Server 4.1 scid=1";
        let commands = parse(line).unwrap();
        assert_eq!(commands.len(), 1);
        assert_eq!(commands[0].variable("CLASSPATH"), Some("/data/local/tmp/s.jar"));
        assert_eq!(commands[0].words[0], "app_process");
        assert_eq!(commands[0].words.last().map(String::as_str), Some("scid=1"));
    }

    #[test]
    fn operators_chain_commands() {
        let commands = parse("a && b || c; d 2>&1 >/dev/null\ne").unwrap();
        let chain: Vec<_> = commands.iter().map(|c| (c.words[0].as_str(), c.when)).collect();
        let expected = [
            ("a", When::Always),
            ("b", When::Succeeded),
            ("c", When::Failed),
            ("d", When::Always),
            ("e", When::Always),
        ];
        assert_eq!(chain, expected);
        assert!(commands[3].quiet && commands[3].words == ["d"]);
    }

    #[test]
    fn what_is_not_simulated_says_so() {
        assert!(parse("a | b").is_err());
        assert!(parse("a &").is_err());
        assert!(parse("  ").is_err());
        assert!(parse(&"x".repeat(MAX_LINE + 1)).is_err());
    }
}
