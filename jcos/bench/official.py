"""The tasks of VBVR-Bench and of VBVR-Pro-Bench: folders are named ID_NAME_data-generator. The
official scorer ignores every other name without a word."""

OFFICIAL = {
    "In-Domain_50": {
        "Abstraction": """
            O-10_shape_outline_fill O-12_shape_color_then_scale O-13_shape_outline_then_move
            O-14_shape_scale_then_outline O-21_construction_blueprint O-29_ballcolor
            O-30_bookshelf O-37_light_sequence O-45_sequence_completion O-47_sliding_puzzle
            G-29_chart_extreme_with_data G-41_grid_highest_cost G-51_predict_next_color
            G-131_select_next_figure_increasing_size_sequence
            G-134_select_next_figure_large_small_alternating_sequence
        """,
        "Knowledge": """
            O-15_ball_bounces_given_time O-18_glass_refraction O-19_mirror_reflection
            O-23_domino_chain_branch_path_prediction O-24_domino_chain_gap_analysis
            O-34_dot_to_dot_task O-52_traffic_light O-53_clock O-75_communicating_vessels
        """,
        "Perception": """
            O-16_color_addition O-31_ball_eating O-33_counting_object O-38_majority_color
            G-3_stable_sort G-5_multi_object_placement G-9_identify_objects_in_region
            G-39_attention_shift_different G-43_understand_scene_structure
            G-138_spot_unique_non_repeated_color G-158_identify_all_hollow_points
        """,
        "Spatiality": """
            O-25_LEGO_construction_assembly O-55_rotation G-13_grid_number_sequence
            G-15_grid_avoid_obstacles G-16_grid_go_through_block G-18_grid_shortest_path
            G-31_directed_graph_navigation G-45_key_door_matching
        """,
        "Transformation": """
            O-32_rolling_ball O-36_grid_shift O-44_rotation_puzzle G-8_track_object_movement
            G-21_multiple_occlusions_vertical G-25_seperate_object_spinning
            G-194_construct_concentric_ring
        """,
    },
    "Out-of-Domain_50": {
        "Abstraction": """
            O-9_shape_scaling O-11_shape_color_then_move O-43_object_subtraction
            O-49_symmetry_completion O-54_control_panel O-56_raven
            G-135_select_next_figure_small_large_alternating_sequence
            G-193_draw_next_sized_shape
        """,
        "Knowledge": """
            O-62_gravity_physics G-160_circle_largest_numerical_value G-217_circle_central_dot
            G-247_identify_chinese_character G-273_high_density_liquid
        """,
        "Perception": """
            O-2_pigment_color_mixing_subtractive O-65_animal_size_sorting G-54_connecting_color
            G-136_locate_point_in_overlapping_area G-147_identify_unique_figure_in_uniform_set
            G-161_mark_second_largest_shape G-167_select_longest_polygon_side
            G-168_identify_nearest_to_square_rectangle G-169_locate_intersection_of_segments
            G-174_arrange_circles_by_circumference G-189_draw_midpoint_perpendicular_line
            G-202_mark_wave_peaks G-206_identify_pentagons G-212_find_incorrect_arrow_direction
            G-218_identify_largest_angle_in_triangle G-222_mark_tangent_point_of_circles
            G-223_highlight_horizontal_lines G-248_mark_asymmetrical_shape
            G-250_color_triple_intersection_red
        """,
        "Spatiality": """
            O-39_maze G-47_multiple_keys_for_one_door G-140_locate_topmost_unobscured_figure
            G-219_select_leftmost_shape G-221_outline_innermost_square
        """,
        "Transformation": """
            O-5_symbol_deletion O-6_2d_geometric_transformation O-22_construction_stack
            O-27_move_2_object_to_2_target O-46_shape_sorter O-58_symbol_delete
            O-59_symbol_insert O-60_symbol_substitute O-61_symbol_edit O-64_animal_matching
            O-85_2d_object_rotation G-24_separate_objects_no_spin
            G-240_add_borders_to_unbordered_shapes
        """,
    },
}
"""By split and category."""
PER_TASK = 5
"""Samples of each task, 00000 to 00004."""

PRO = {
    "Abstraction": "G-131 G-134 G-51 O-10 O-12 O-13 O-14 O-29 O-30 O-31 O-44 O-45 O-47 "
    "G-135 G-193 O-11 O-22 O-54 O-56 O-58 O-59 O-5 O-60 O-61 O-9",
    "Knowledge": "G-21 G-29 G-41 G-43 O-15 O-16 O-18 O-19 O-23 O-24 O-34 O-52 O-53 O-75 "
    "G-160 G-247 G-273 O-2 O-62",
    "Perception": "G-138 G-158 G-3 G-9 O-33 O-37 O-38 G-136 G-147 G-161 G-167 G-168 G-169 G-174 "
    "G-189 G-202 G-206 G-212 G-217 G-218 G-222 G-223 G-240 G-248 G-250 G-54 O-43 O-65",
    "Spatiality": "G-13 G-15 G-16 G-18 G-31 G-45 G-8 O-21 O-25 O-55 "
    "G-140 G-219 G-221 G-47 O-39 O-49",
    "Transformation": "G-194 G-25 G-39 G-5 O-32 O-36 G-24 O-27 O-46 O-64 O-6 O-85",
}
"""Categories of VBVR-Pro-Bench, which has the same tasks in the same splits, by their numbers."""

TITLES = {"vbvr": "VBVR-Bench", "vbvr-pro": "VBVR-Pro-Bench"}
