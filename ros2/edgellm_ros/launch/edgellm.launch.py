"""The node, configured and activated: ros2 launch edgellm_ros edgellm.launch.py model:=FILE.gguf"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition


def generate_launch_description():
    parameters = PathJoinSubstitution([FindPackageShare("edgellm_ros"), "config", "edgellm.yaml"])
    node = LifecycleNode(
        package="edgellm_ros",
        executable="edgellm",
        name="edgellm",
        namespace="",
        output="screen",
        parameters=[LaunchConfiguration("parameters"), {"model_path": LaunchConfiguration("model")}],
    )

    def transition(number):
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=number))

    activate = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[transition(Transition.TRANSITION_ACTIVATE)],
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("model", description="a GGUF file"),
            DeclareLaunchArgument("parameters", default_value=parameters, description="a file of the node's parameters"),
            RegisterEventHandler(activate),
            node,
            transition(Transition.TRANSITION_CONFIGURE),
        ]
    )
