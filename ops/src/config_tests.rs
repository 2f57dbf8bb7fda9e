//! Tests of `config`: one per trap.

use std::{collections::BTreeMap, net::SocketAddr};

use serde_json::json;

use super::*;

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Demo {
    listen: SocketAddr,
    name: String,
    threads: Option<u32>,
    token: Secret<String>,
    ice: Ice,
    devices: Vec<Device>,
    labels: BTreeMap<String, String>,
    words: Vec<String>,
    numbers: Vec<u16>,
}

impl Default for Demo {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:1".parse().unwrap(),
            name: "n".into(),
            threads: None,
            token: Secret::default(),
            ice: Ice::default(),
            devices: vec![],
            labels: BTreeMap::new(),
            words: vec![],
            numbers: vec![],
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Ice {
    port: u16,
    announce: Vec<SocketAddr>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Device {
    adb: String,
    #[serde(default)]
    fps: Option<u32>,
}

fn load_demo(file: &str, env: &[(&str, &str)], flags: Value) -> Result<Demo, ConfigErrors> {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    load_from(Some(("x.toml", file)), env, ENV_PREFIX, flags)
}

fn lines(result: Result<Demo, ConfigErrors>) -> Vec<String> {
    result.unwrap_err().to_string().lines().map(str::to_owned).collect()
}

#[test]
fn flags_go_over_environment_goes_over_file() {
    let file = "name = 'file'\nlisten = '127.0.0.1:10'\n[ice]\nport = 10\n";
    let env = [("FANLIGHT_LISTEN", "127.0.0.1:20"), ("FANLIGHT_ICE__PORT", "20")];
    let flags = json!({ "ice": { "port": 30 }, "name": null });
    let demo = load_demo(file, &env, flags).unwrap();
    assert_eq!(demo.name, "file", "a flag that was not given must not clear the file's value");
    assert_eq!(demo.listen.port(), 20);
    assert_eq!(demo.ice.port, 30);
}

#[test]
fn environment_texts_become_what_the_key_wants() {
    let env = [
        ("FANLIGHT_NAME", "123"),
        ("FANLIGHT_THREADS", "4"),
        ("FANLIGHT_TOKEN", "true"),
        ("FANLIGHT_WORDS", "a, b"),
        ("FANLIGHT_NUMBERS", "7"),
        ("FANLIGHT_ICE__ANNOUNCE", "1.2.3.4:5"),
        ("FANLIGHT_DEVICES", r#"[{"adb":"h:1"},{"adb":"h:2","fps":60}]"#),
        ("FANLIGHT_LABELS__ZONE", "a"),
    ];
    let demo = load_demo("", &env, json!({})).unwrap();
    assert_eq!((demo.name.as_str(), demo.threads), ("123", Some(4)));
    assert_eq!(demo.token.expose(), "true");
    assert_eq!(demo.words, ["a", "b"]);
    assert_eq!(demo.numbers, [7]);
    assert_eq!(demo.ice.announce.len(), 1);
    assert_eq!(demo.devices[1].fps, Some(60));
    assert_eq!(demo.labels["zone"], "a");
}

#[test]
fn unknown_keys_are_refused_with_path_place_and_suggestion() {
    let file =
        "lisen = 'x'\nnothing_like_it = 1\n[ice]\nprot = 1\n[[devices]]\nadb = 'a'\nfpss = 1\n";
    let got = lines(load_demo(file, &[("FANLIGHT_ICE__POTR", "1")], json!({ "nmae": "x" })));
    let want = [
        r#"configuration: ice.potr (from FANLIGHT_ICE__POTR): unknown key; did you mean "port"?"#,
        r#"configuration: ice.prot (from x.toml): unknown key; did you mean "port"?"#,
        r#"configuration: devices[0].fpss (from x.toml): unknown key; did you mean "fps"?"#,
        r#"configuration: lisen (from x.toml): unknown key; did you mean "listen"?"#,
        r#"configuration: nmae (from --nmae): unknown key; did you mean "name"?"#,
        "configuration: nothing_like_it (from x.toml): unknown key; known are devices, ice, labels, \
         listen, name, numbers, threads, token, words",
    ];
    assert_eq!(got, want);
}

#[test]
fn strangers_in_the_environment_are_left_alone_but_near_misses_are_not() {
    let env = [("FANLIGHT_SERVICE_HOST", "10.0.0.1"), ("FANLIGHT_BIN", "/x"), ("OTHER_NAME", "x")];
    load_demo("", &env, json!({})).unwrap();
    let got = lines(load_demo("", &[("FANLIGHT_LISTEM", "x")], json!({})));
    assert_eq!(
        got,
        [r#"configuration: listem (from FANLIGHT_LISTEM): unknown key; did you mean "listen"?"#]
    );
}

#[test]
fn all_wrong_values_are_reported_at_once() {
    let file = "listen = 'nowhere'\nthreads = 'many'\n[ice]\nport = 70000\n";
    let got = lines(load_demo(file, &[("FANLIGHT_NUMBERS", "1,x")], json!({})));
    assert_eq!(got.len(), 4, "{got:#?}");
    let has = |start: &str| assert!(got.iter().any(|l| l.starts_with(start)), "{got:#?}");
    has("configuration: listen (from x.toml): invalid socket address");
    has("configuration: threads (from x.toml): ");
    has("configuration: ice.port (from x.toml): ");
    assert!(got.iter().any(|l| l.contains("(from FANLIGHT_NUMBERS)")), "{got:#?}");
}

#[test]
fn a_missing_key_is_named_with_what_was_probably_meant() {
    let got = lines(load_demo("[[devices]]\nabd = 'x'\n", &[], json!({})));
    assert_eq!(got, [r#"configuration: devices[0].adb: must be given; did you mean it by "abd"?"#]);
}

#[test]
fn secrets_are_never_shown() {
    let demo = load_demo("token = 'hunter2'", &[], json!({})).unwrap();
    assert_eq!(demo.token.expose(), "hunter2");
    let shown = print_config(&demo) + &format!("{demo:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("token = \"********\""), "{shown}");

    let got = lines(load_demo("token = 31337", &[], json!({}))).join("\n");
    assert!(got.contains("token (from x.toml)") && !got.contains("31337"), "{got}");
    let got = lines(load_demo("token = 'hunter2\n", &[], json!({}))).join("\n");
    assert!(got.starts_with("configuration: x.toml: line 1: not TOML"), "{got}");
    assert!(!got.contains("hunter2"), "{got}");
}

#[test]
fn a_file_that_is_not_there_is_one_line() {
    let error =
        load::<Demo>(Some(Path::new("/nowhere/x.toml")), ENV_PREFIX, json!({})).unwrap_err();
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1);
    assert!(text.contains("/nowhere/x.toml") && text.contains("No such file"), "{text}");
}

#[test]
fn what_is_printed_can_be_read_back() {
    let demo = load_demo("[[devices]]\nadb = 'h:1'\n", &[], json!({ "threads": 2 })).unwrap();
    let again = load_demo(&print_config(&demo), &[], json!({})).unwrap();
    assert_eq!((again.threads, again.devices[0].adb.as_str()), (Some(2), "h:1"));
}
