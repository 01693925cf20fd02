//! What is followed lasts for as long as it is; everything else has its time.

use super::*;

const TIME: Duration = Duration::from_millis(150);

fn short() -> Open {
    // No empty line comes by itself.
    open(Bounds { streams: 1, connection_time: TIME, quiet: Duration::from_secs(60), ..Bounds::default() })
}

#[tokio::test]
async fn what_is_followed_outlives_the_time_of_a_connection() {
    for path in ["/v1/events", "/v1/flows"] {
        let door = short();
        let mut stream = door.connect().await;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        while !lines.next_line().await.unwrap().unwrap().is_empty() {}
        tokio::time::sleep(TIME * 4).await;
        assert_eq!(door.counts.read().get("timed_out"), None, "{path}");
        door.fake.events.send("{\"n\":1}".into()).unwrap();
        // In chunks: each behind its length.
        let line = loop {
            let line = tokio::time::timeout(Duration::from_secs(5), lines.next_line()).await.unwrap();
            match line.unwrap_or_else(|error| panic!("{path} was cut: {error}")) {
                Some(line) if line.starts_with('{') => break line,
                Some(_) => {}
                None => panic!("{path} has ended"),
            }
        };
        assert_eq!(line, "{\"n\":1}", "{path}");
    }
}

#[tokio::test]
async fn what_is_not_followed_has_its_time() {
    let slow = WEB.replace("web", "slow");
    let attach = format!("POST /v1/pods HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{slow}", slow.len());
    // A path alone makes no stream.
    let no_stream = "POST /v1/flows HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n".to_owned();
    for (request, answer) in [(attach, ""), (no_stream, "HTTP/1.1 405")] {
        let door = short();
        let started = Instant::now();
        let answered = door.say(request.as_bytes()).await;
        assert!(answered.starts_with(answer) && started.elapsed() < TIME * 4, "{answered}");
        assert_eq!(door.counts.read().contains_key("timed_out"), answer.is_empty(), "{answered}");
    }
}
