//! Attaches programs to interfaces and cgroups, through links that outlive the agent.
