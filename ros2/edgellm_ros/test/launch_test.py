"""The launched node: it becomes active, generates with feedback, is cancelled, scores, and says how it is.

colcon test --packages-select edgellm_ros, after a build with --cmake-args -DEDGELLM_TEST_MODEL=.../edgellm-tiny-b1.58.gguf
"""

import json
import unittest
from pathlib import Path

import launch
import launch_testing.actions
import rclpy
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray
from edgellm_msgs.action import Generate
from edgellm_msgs.srv import Score, Tokenize
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from rclpy.action import ActionClient

MESSAGES = json.dumps([{"role": "user", "content": "Stop."}])
ANSWER = '{"action":"stop"}'
SECONDS = 30.0


def generate_test_description():
    source = Path(__file__).parents[1] / "launch" / "edgellm.launch.py"
    included = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(source)),
        launch_arguments={"model": LaunchConfiguration("model")}.items(),
    )
    return launch.LaunchDescription([DeclareLaunchArgument("model"), included, launch_testing.actions.ReadyToTest()])


class NodeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        rclpy.init()
        cls.node = rclpy.create_node("edgellm_test")
        cls.generate = ActionClient(cls.node, Generate, "/edgellm/generate")
        assert cls.generate.wait_for_server(timeout_sec=SECONDS), "the node did not become active"

    @classmethod
    def tearDownClass(cls):
        cls.node.destroy_node()
        rclpy.shutdown()

    def wait(self, future):
        rclpy.spin_until_future_complete(self.node, future, timeout_sec=SECONDS)
        self.assertTrue(future.done())
        return future.result()

    def call(self, kind, name, request):
        client = self.node.create_client(kind, name)
        self.assertTrue(client.wait_for_service(timeout_sec=SECONDS))
        return self.wait(client.call_async(request))

    def test_it_generates_and_tells_as_it_goes(self):
        pieces = []
        goal = self.wait(
            self.generate.send_goal_async(Generate.Goal(messages=MESSAGES), lambda it: pieces.append(it.feedback.text))
        )
        self.assertTrue(goal.accepted)
        answer = self.wait(goal.get_result_async())
        self.assertEqual(answer.status, GoalStatus.STATUS_SUCCEEDED)
        self.assertEqual((answer.result.text, answer.result.finish), (ANSWER, Generate.Result.FINISH_EOS))
        self.assertEqual("".join(pieces), ANSWER)

    def test_it_is_cancelled(self):
        text = "Once upon a time"
        goal = self.wait(self.generate.send_goal_async(Generate.Goal(prompt=text, temperature=1.0, top_p=0.9)))
        self.assertTrue(goal.accepted)
        self.wait(goal.cancel_goal_async())
        answer = self.wait(goal.get_result_async())
        # A tiny model may be done before the cancel arrives.
        self.assertIn(answer.status, (GoalStatus.STATUS_CANCELED, GoalStatus.STATUS_SUCCEEDED))

    def test_it_rejects_what_is_no_request(self):
        self.assertFalse(self.wait(self.generate.send_goal_async(Generate.Goal())).accepted)

    def test_it_scores_and_tokenizes(self):
        request = Score.Request(messages=MESSAGES, candidates=['{"action":"dock"}', ANSWER])
        scores = self.call(Score, "/edgellm/score", request)
        self.assertTrue(scores.success, scores.message)
        self.assertEqual(scores.best, 1)
        tokens = self.call(Tokenize, "/edgellm/tokenize", Tokenize.Request(text="Stop."))
        self.assertTrue(tokens.success and len(tokens.tokens) > 0, tokens.message)

    def test_it_says_how_it_is(self):
        seen = []
        subscription = self.node.create_subscription(DiagnosticArray, "/diagnostics", seen.append, 10)
        for _ in range(300):
            rclpy.spin_once(self.node, timeout_sec=0.1)
            if any("edgellm" in status.name for message in seen for status in message.status):
                break
        else:
            self.fail("nothing on /diagnostics")
        self.node.destroy_subscription(subscription)
