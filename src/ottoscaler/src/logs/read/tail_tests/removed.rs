//! What is told of a log that its node no longer has.
use super::*;

/// Its pod was evicted before anybody read its log: the node removes the containers of such.
#[tokio::test(start_paused = true)]
async fn a_log_that_its_node_has_removed_is_one_gap_and_no_line() {
    for (words, as_error) in [
        (REMOVED, false),
        (REMOVED, true),
        (
            "unable to retrieve container logs for docker://4f1c\n",
            false,
        ),
        (
            "failed to try resolving symlinks in path \"/var/log/pods/0.log\": no such file",
            false,
        ),
        ("container \"worker\" in pod \"p\" is terminated", true),
    ] {
        let node = Node::running();
        node.end();
        *node.refuses.lock().unwrap() = Some((words, as_error));
        let begun = Instant::now();
        let mut tail = node.tail(None);
        assert_eq!(
            rest(&mut tail).await,
            ["gap log removed None None", "gone"],
            "{words}"
        );
        let took = begun.elapsed();
        assert!(
            (REMOVED_AFTER..REMOVED_AFTER * 2).contains(&took),
            "{took:?}"
        );
        assert!(node.opens.lock().unwrap().len() < 15);
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_refused_for_a_while_is_read_when_it_is_served() {
    for over in [false, true] {
        let node = Node::running();
        node.print(0..2);
        *node.refuses.lock().unwrap() = Some((REMOVED, false));
        let mut tail = node.tail(None);
        if over {
            node.end();
        }
        let serves = || *node.refuses.lock().unwrap() = None;
        // A container that runs is waited for as long as it does.
        let after = if over {
            REMOVED_AFTER / 2
        } else {
            REMOVED_AFTER * 3
        };
        let (line, ()) = meanwhile(some(&mut tail), after, serves).await;
        assert_eq!(line, "line 0");
        node.end();
        assert_eq!(rest(&mut tail).await, ["line 1", "end"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_log_of_which_all_was_read_is_no_gap() {
    let node = Node::running();
    let mut tail = node.read().await;
    *node.refuses.lock().unwrap() = Some((REMOVED, false));
    let ends = || node.end();
    let (all, ()) = meanwhile(rest(&mut tail), Duration::from_millis(10), ends).await;
    assert_eq!(all, ["gone"]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_may_print_the_words_of_a_kubelet() {
    let node = Node::running();
    let stamp = |n: i64| text(n).split(' ').next().unwrap().to_owned();
    let said = format!("{} {REMOVED}", stamp(0));
    node.lines.send_modify(|lines| lines.push(said));
    node.print(1..2);
    node.end();
    let mut tail = node.tail(None);
    assert_eq!(rest(&mut tail).await, [REMOVED, "line 1", "end"]);
    // The rest of a line whose head was cut off has no time, and is not all that there is.
    let body = format!("{REMOVED}\n{}\n", text(1));
    let mut reader = reader(stream::iter([Ok(body.into_bytes())]));
    let mut all = Vec::new();
    while let Ok(Piece::Line(line)) = reader.next().await {
        all.push(String::from_utf8(line.text).unwrap());
    }
    assert_eq!(all, [REMOVED, "line 1"]);
}

/// A kubelet that fails within a log ends it with its own words.
#[tokio::test(start_paused = true)]
async fn the_words_of_a_kubelet_behind_lines_are_no_line() {
    let body = format!("{}\nfailed on the way", text(0));
    let mut reader = reader(stream::iter([Ok(body.into_bytes())]));
    assert!(matches!(reader.next().await, Ok(Piece::Line(_))));
    assert!(
        matches!(reader.next().await, Ok(Piece::Refused(words)) if words == "failed on the way")
    );
}
